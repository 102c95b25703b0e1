// The worker of the `web-chromium` device: relays the conversation to a page in a headless browser.
// Run as `node chromium.mjs DIST BROWSER FLAG…`. The page fetches questions and posts
// answers; only who knows the token in the address is served. The browser and its profile folder go
// when standard input ends.
import { spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { createReadStream, mkdtempSync, rmSync } from 'node:fs';
import { createServer } from 'node:http';
import { tmpdir } from 'node:os';
import { basename, dirname, join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';

const [dist, browser, ...flags] = process.argv.slice(2);
const here = dirname(fileURLToPath(import.meta.url));
const profile = mkdtempSync(join(tmpdir(), 'deploynas-chromium-'));
const token = randomBytes(16).toString('hex');
const types = { '.mjs': 'text/javascript', '.wasm': 'application/wasm', '.html': 'text/html' };
const questions = []; // waiting for the page
const waiting = []; // requests of the page that wait for a question
let loading = null; // path of the model that the page may fetch

function handOut() {
  while (questions.length && waiting.length) {
    const question = JSON.parse(questions.shift());
    loading = question.load ?? null;
    waiting.shift().end(JSON.stringify(question));
  }
}

function sendFile(response, path) {
  const type = types[path.slice(path.lastIndexOf('.'))] ?? 'application/octet-stream';
  response.setHeader('Content-Type', type);
  createReadStream(path).on('error', () => response.writeHead(404).end()).pipe(response);
}

const server = createServer((request, response) => {
  // A page that is isolated from others gets a clock of 5 microseconds instead of 100.
  response.setHeader('Cross-Origin-Opener-Policy', 'same-origin');
  response.setHeader('Cross-Origin-Embedder-Policy', 'require-corp');
  response.setHeader('Cache-Control', 'no-store');
  const [, given, kind, file] = request.url.split('/');
  if (given !== token) return response.writeHead(403).end();
  if (kind === 'next') {
    waiting.push(response);
    return handOut();
  }
  if (kind === 'answer') {
    let text = '';
    request.on('data', (part) => (text += part));
    return request.on('end', () => {
      process.stdout.write(text + '\n');
      response.end();
    });
  }
  if (kind === 'model' && loading) return sendFile(response, loading);
  if (kind === 'dist') return sendFile(response, join(dist, basename(file)));
  return sendFile(response, join(here, kind === '' ? 'page.html' : basename(kind)));
});

server.listen(0, '127.0.0.1', () => {
  const address = `http://127.0.0.1:${server.address().port}/${token}/`;
  const child = spawn(browser, [...flags, `--user-data-dir=${profile}`, address], {
    detached: true, // a process group of its own, which can be ended as a whole
    stdio: ['ignore', 'ignore', 'inherit'],
  });
  let ended = false;
  const end = (code) => {
    if (ended) return;
    ended = true;
    try {
      process.kill(-child.pid, 'SIGKILL');
    } catch {
      // it has ended by itself
    }
    rmSync(profile, { recursive: true, force: true, maxRetries: 20, retryDelay: 50 });
    process.exit(code);
  };
  child.on('error', () => end(1));
  child.on('exit', () => end(1));
  for (const signal of ['SIGTERM', 'SIGINT', 'SIGHUP']) process.on(signal, () => end(1));
  createInterface({ input: process.stdin })
    .on('line', (line) => {
      questions.push(line);
      handOut();
    })
    .on('close', () => end(0));
});
