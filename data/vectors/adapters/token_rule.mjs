// Draws by the token rule: chains, trees, whole texts. python -m speclib certify -- node token_rule.mjs
import { createInterface } from "node:readline";
let state = 0;
const uniform = () => { // mulberry32
  let t = Math.imul((state = (state + 0x6d2b79f5) | 0) ^ (state >>> 15), state | 1);
  t ^= t + Math.imul(t ^ (t >>> 7), t | 61);
  return ((t ^ (t >>> 14)) >>> 0) / 2 ** 32;
};
const total = (row) => row.reduce((a, b) => a + b);
const draw = (row, u = uniform() * total(row), sum = 0) => row.findIndex((x) => (sum += x) > u);
function verify({ p, q, drafted, parents, mask }) { // -> the accepted guesses and the next token
  const emitted = [], row = (k) => p[k].map((x, y) => x * (mask ? mask[k][y] : 1)).map((x, _, all) => x / total(all));
  let place = 0, left = row(0);
  drafted.forEach((x, i) => {
    if ((parents ? parents[i] + 1 : i) !== place) return;
    if (q[i][x] > 0 && uniform() < left[x] / q[i][x]) { emitted.push(x); place = i + 1; left = row(place); return; }
    const rest = left.map((chance, y) => Math.max(chance - q[i][y], 0));
    if (total(rest) > 0) left = rest.map((chance) => chance / total(rest));
  });
  return [...emitted, draw(left)];
}
function write({ p, q, gamma, length, eos }) { // -> a text, by rounds
  const text = [];
  while (text.length < length) {
    const drafted = [], rows = [p[text.join()]], told = [];
    while (drafted.length < Math.min(gamma, length - text.length - 1)) {
      told.push(q[[...text, ...drafted].join()]);
      drafted.push(draw(told.at(-1)));
      rows.push(p[[...text, ...drafted].join()]);
    }
    for (const x of verify({ p: rows, q: told, drafted })) { text.push(x); if (x === eos) return text; }
  }
  return text;
}
for await (const line of createInterface({ input: process.stdin })) {
  const { op, id, n, seed: first, case: asked } = JSON.parse(line);
  const draws = () => Array.from({ length: (state = first, n) }, () => (asked.task === "text" ? write : verify)(asked));
  const hello = { id, name: "token rule in JavaScript", answers: "draws", skip: ["settings"] };
  console.log(JSON.stringify(op === "hello" ? hello : { id, draws: draws() }));
}
