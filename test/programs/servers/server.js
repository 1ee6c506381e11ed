// The server of README.md on Node's event loop.
'use strict';
const net = require('net');
const readline = require('readline');

const N = 1 << 20;
const words = new Uint32Array(N);
for (let i = 0; i < N; i++) words[i] = Math.imul(i, 2654435761);
const strings = new Map();
let ticks = 0;
let garbage = [];

setInterval(() => {
  ticks++;
  garbage.push('x'.repeat(1000) + ticks);
  if (garbage.length > 5000) garbage = [];
}, 10);

function work(seed, count) {
  const base = Math.imul(seed, 1664525);
  for (let k = 0; k < count; k++) {
    words[(base + Math.imul(k, 1013904223)) >>> 12] += seed + k;
  }
  return 'ok';
}

function digest() {
  let sum = 0;
  for (let i = 0; i < N; i++) sum = (sum + Math.imul(words[i], 2 * i + 1)) | 0;
  return String(sum >>> 0);
}

function answer(line) {
  const [command, a, ...rest] = line.split(' ');
  switch (command) {
    case 'put': strings.set(a, rest.join(' ')); return 'ok';
    case 'get': return strings.has(a) ? strings.get(a) : 'none';
    case 'work': return work(Number(a), Number(rest[0]));
    case 'digest': return digest();
    case 'ticks': return String(ticks);
  }
  return 'what?';
}

net.createServer((socket) => {
  socket.on('error', () => {});
  readline.createInterface({ input: socket }).on('line', (line) => socket.write(answer(line) + '\n'));
}).listen(Number(process.argv[3]), process.argv[2]);
