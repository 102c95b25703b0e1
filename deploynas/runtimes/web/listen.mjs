// The thread of node.mjs that reads standard input, a line a message. The main one computes and
// hears nothing meanwhile; where nobody asks any more, this one ends both, whatever goes on.
import { readSync } from 'node:fs';
import { parentPort } from 'node:worker_threads';

const bytes = Buffer.alloc(1 << 16);
let text = '';
for (;;) {
  let count = 0;
  try {
    count = readSync(0, bytes);
  } catch {
    // it has ended
  }
  if (!count) process.kill(process.pid, 'SIGKILL');
  const lines = (text + bytes.toString('latin1', 0, count)).split('\n'); // our JSON is ASCII
  text = lines.pop();
  for (const line of lines) parentPort.postMessage(line);
}
