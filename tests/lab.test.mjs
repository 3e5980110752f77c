// The laboratory's module against the exactness vectors, and against itself: node --test tests/lab.test.mjs
// VECTORS in the environment names another folder of vectors.

import assert from "node:assert/strict";
import { existsSync, readFileSync, readdirSync } from "node:fs";
import { test } from "node:test";
import { fileURLToPath } from "node:url";
import * as lab from "../notebooks/lab/lab.mjs";

const folder = process.env.VECTORS ?? fileURLToPath(new URL("../data/vectors", import.meta.url));
const missing = existsSync(folder) ? false : `no exactness vectors in ${folder}`;

function number(value) {
  if (typeof value !== "string") return value;
  const [above, below = 1] = value.split("/").map(Number);
  return above / below;
}
const rows = (table) => table.map((row) => row.map(number));
const masked = (row, mask) => {
  const left = row.map((x, k) => x * mask[k]);
  return left.map((x) => x / left.reduce((a, b) => a + b));
};

function verify({ rule, p, q, drafted, parents, mask, law }, parameters) {
  const seen = rows(p).map((row, k) => (mask ? masked(row, mask[k]) : row));
  const judge = parents ? lab.tree : lab.RULES[rule].law;
  const found = judge(seen, rows(q), drafted, parents ?? parameters);
  assert.equal(found.stop.length, law.stop.length);
  const gaps = law.stop.map((stop, k) => {
    const next = law.next[k]?.map((x, token) => Math.abs(number(x) - found.next[k][token])) ?? [];
    return Math.max(Math.abs(number(stop) - found.stop[k]), ...next);
  });
  return Math.max(...gaps);
}

function write({ rule, p, q, gamma, length, eos, sampling, law }, parameters) {
  const [target, draft] = [p, q].map((table) => (text) => table[text.join()].map(number));
  const setting = Object.fromEntries(Object.entries(sampling).map(([key, value]) => [key, number(value)]));
  const found = lab.textLaw(lab.loopOf(rule, setting), target, draft, gamma, length, eos, parameters);
  const texts = [...new Set([...found.keys(), ...Object.keys(law)])];
  return Math.max(...texts.map((text) => Math.abs((found.get(text) ?? 0) - number(law[text] ?? 0))));
}

test("every exactness vector, to 1e-12", { skip: missing }, () => {
  const files = readdirSync(folder).filter((file) => file.endsWith(".json") && file !== "schema.json");
  let count = 0;
  for (const file of files) {
    const { version, cases } = JSON.parse(readFileSync(`${folder}/${file}`, "utf8"));
    assert.equal(version, "speclib-vectors/1");
    for (const one of cases) {
      const parameters = Object.fromEntries(Object.entries(one.parameters).map(([key, value]) => [key, number(value)]));
      const gap = (one.task === "verify" ? verify : write)(one, parameters);
      assert.ok(gap < 1e-12, `${one.id}: off by ${gap}`);
      count++;
    }
  }
  assert.ok(count >= 300, `only ${count} vectors`);
});

test("every rule's draws follow its own exact law", () => {
  const state = { ...lab.DEFAULTS, p: [40, 30, 20, 10], q: [15, 37, 8, 40], n: 3 };
  for (const rule of Object.keys(lab.RULES)) {
    const { loop, target, draft, texts, law } = lab.computed({ ...state, rule });
    const counts = texts.map(() => 0);
    const random = lab.generator(2026);
    for (let k = 0; k < 20000; k++) counts[parseInt(lab.drawText(loop, target, draft, 2, 3, random).join(""), 4)]++;
    const { p, n } = lab.gTest(counts, law);
    assert.equal(n, 20000);
    assert.ok(p > 1e-6, `${rule}: p = ${p}`);
  }
});

test("the same seed gives the same numbers, neighbouring seeds have nothing in common", () => {
  const numbers = (seed) => Array.from({ length: 1000 }, lab.generator(seed));
  assert.deepEqual(numbers(5), numbers(5));
  const shared = numbers(5).filter((x) => numbers(6).includes(x));
  assert.equal(shared.length, 0);
  assert.ok(numbers(7).every((x) => x >= 0 && x < 1));
});

test("where nothing of p lies above q, the residual is p", () => {
  assert.deepEqual(lab.residual([0.3, 0.7], [0.3, 0.7]), [0.3, 0.7]);
  assert.deepEqual(lab.residual([0.3, 0.7], [0.6, 0.4]), [0, 1]);
});

test("a draw at the ends of its interval is a possible token", () => {
  assert.equal(lab.pick([0, 0.5, 0.5, 0], 0), 1);
  assert.equal(lab.pick([0, 0.5, 0.5, 0], 1 - 2 ** -32), 2);
  assert.equal(lab.pick([0.1, 0.2, 0.7 - 1e-16, 0], 1), 2);
});

test("bars are whole percentages that sum to 100, wherever one is moved", () => {
  for (const bars of [[40, 30, 20, 10], [100, 0, 0, 0], [1, 1, 1, 97], [33, 33, 33, 1]])
    for (let at = 0; at < 4; at++)
      for (let value = 0; value <= 100; value++) {
        const row = lab.moved(bars, at, value);
        assert.equal(row[at], value);
        assert.equal(row.reduce((a, b) => a + b), 100);
        assert.ok(row.every((x) => Number.isInteger(x) && x >= 0));
      }
  assert.deepEqual(lab.moved([40, 30, 20, 10], 0, 40), [40, 30, 20, 10]);
});

test("the address holds the state, and says only what differs from the start", () => {
  const round = { g: 3, n: 4, d: [3, 2, 1], round: 7, step: 2 };
  const rest = { p: [0, 0, 1, 99], rule: "r <= ratio", set: "top-k 2", draws: 500, at: 255, theme: "dark" };
  const state = { ...lab.DEFAULTS, ...round, ...rest };
  assert.deepEqual(lab.fromHash("#" + lab.toHash(state)), state);
  assert.equal(lab.toHash(lab.DEFAULTS), "");
});

test("nonsense in an address is as if it were not there", () => {
  const bars = ["p=50-50", "p=50-50-1-0", "p=-1-1-50-50", "p=1e2-0-0-0", "p="];
  const names = ["rule=constructor", "rule=__proto__", "set=toString", "d=ABX", "theme=<script>"];
  const numbers = ["g=4", "g=0", "n=9", "step=4", "draws=1e9", "draws=100001", "seed=0", "at=256"];
  for (const said of [...bars, ...names, ...numbers, "%", "x=1&=&&&"])
    assert.deepEqual(lab.fromHash("#" + said), lab.DEFAULTS, said);
  assert.equal(lab.fromHash("#n=2&at=200").at, 15);
});
