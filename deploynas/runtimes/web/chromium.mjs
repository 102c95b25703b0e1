// The worker of the `web-chromium` device: relays the conversation to a page in a headless browser.
// Run as `node chromium.mjs DIST BROWSER FLAG…`. The page fetches questions and posts
// answers; only who knows the token in the address is served. The browser and its profile folder go
// when standard input ends; where this relay is killed, the browser goes by itself.
import { spawn } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { createReadStream, mkdtempSync, rmSync, utimesSync } from 'node:fs';
import { createServer } from 'node:http';
import { tmpdir } from 'node:os';
import { basename, dirname, join } from 'node:path';
import { createInterface } from 'node:readline';
import { fileURLToPath } from 'node:url';

const [dist, browser, ...flags] = process.argv.slice(2);
const here = dirname(fileURLToPath(import.meta.url));
const profile = mkdtempSync(join(tmpdir(), 'deploynas-chromium-'));
// a folder that nobody has touched for a day is removed by who makes the next one
setInterval(() => utimesSync(profile, new Date(), new Date()), 3_600_000);
const token = randomBytes(16).toString('hex');
const OPEN_MS = 120_000; // a browser that takes longer to open the page never will
const types = { '.mjs': 'text/javascript', '.wasm': 'application/wasm', '.html': 'text/html' };
const questions = []; // waiting for the page
const waiting = []; // requests of the page that wait for a question
let loading = null; // path of the model that the page may fetch
let end = () => {}; // says why, tidies up and exits
let opening;

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
  if (kind === 'alive') {
    // never answered: that the connection closes is how the death of a page is noticed
    clearTimeout(opening);
    return response.on('close', () => end('the page ended: it crashed or ran out of memory'));
  }
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
  const pipe = '--remote-debugging-pipe'; // file descriptors 3 and 4; their end ends the browser
  const child = spawn(browser, [...flags, pipe, `--user-data-dir=${profile}`, address], {
    detached: true, // a process group of its own, which can be ended as a whole
    stdio: ['ignore', 'ignore', 'pipe', 'pipe', 'pipe'],
    // crash reports, caches and temporary files go where the profile goes
    env: { ...process.env, TMPDIR: profile, XDG_CONFIG_HOME: profile, XDG_CACHE_HOME: profile },
  });
  let said = '';
  child.stderr.on('data', (text) => (said = (said + text).slice(-2000)));
  let ended = false;
  end = (words) => {
    if (ended) return;
    ended = true;
    if (words) console.error(words);
    try {
      process.kill(-child.pid, 'SIGKILL');
    } catch {
      // it has ended by itself
    }
    rmSync(profile, { recursive: true, force: true, maxRetries: 20, retryDelay: 50 });
    process.exit(words ? 1 : 0);
  };
  opening = setTimeout(() => end('the browser did not open the page'), OPEN_MS);
  child.on('error', (error) => end(`the browser does not start: ${error.message}`));
  child.on('exit', () => {
    const words = () => end(`the browser ended: ${said.trim().split('\n').at(-1)}`);
    setTimeout(words, 100); // what it said may still be on its way
  });
  for (const signal of ['SIGTERM', 'SIGINT', 'SIGHUP']) process.on(signal, () => end(signal));
  createInterface({ input: process.stdin })
    .on('line', (line) => {
      questions.push(line);
      handOut();
    })
    .on('close', () => end());
});
