// The worker of the `web` device: onnxruntime-web in Node.
// Run as `node node.mjs DIST`, the runtime's dist folder; the conversation is conversation.py's.
import { on } from 'node:events';
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { pathToFileURL } from 'node:url';
import { Worker } from 'node:worker_threads';
import { Engine, describe } from './engine.mjs';

const questions = on(new Worker(new URL('./listen.mjs', import.meta.url)), 'message');
const dist = process.argv[2];
const ort = await import(pathToFileURL(join(dist, 'ort.wasm.bundle.min.mjs')));
ort.env.wasm.wasmBinary = readFileSync(join(dist, 'ort-wasm-simd-threaded.wasm'));
console.log = console.error; // whatever the runtime prints must not reach the conversation
const engine = new Engine(ort, 0.001);

for await (const [line] of questions) {
  const question = JSON.parse(line);
  let answer;
  try {
    answer = await engine.answer(question, readFileSync);
  } catch (error) {
    answer = { error: describe(error) };
  }
  process.stdout.write(JSON.stringify(answer) + '\n');
}
