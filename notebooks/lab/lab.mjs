// The laboratory of speculative sampling: verification rules as laws, the exact law of a text, tests of draws, and the
// state of the page. `node --test` imports this file, and make.py copies it into index.html, since a browser imports no
// module from a file. A row is an array of probabilities; for n guesses p has n + 1 rows, q has n.

const sum = (row) => row.reduce((a, b) => a + b, 0);
const scaled = (row) => row.map((x) => x / sum(row));
const point = (token, size) => Array.from({ length: size }, (_, k) => +(k === token));
const favourite = (row) => row.indexOf(Math.max(...row));
const TINY = 1e-9; // what is equal on paper counts as equal where a rule compares
const pairs = (p, q, of) => p.map((x, k) => of(x, q[k]));

// --- two rows ----------------------------------------------------------------

export const overlap = (p, q) => sum(pairs(p, q, Math.min));
export const variation = (p, q) => sum(pairs(p, q, (a, b) => Math.abs(a - b))) / 2;

// norm(max(p - q, 0)); where nothing of p lies above q, the limit is p
export function residual(p, q) {
  const excess = pairs(p, q, (a, b) => Math.max(a - b, 0));
  return sum(excess) > 0 ? scaled(excess) : p;
}

// temperature, then top_k (ties stay), then top_p: the fewest of the most probable whose total is at least that
export function filtered(row, { temperature = 1, top_k = Infinity, top_p = 1 } = {}) {
  if (temperature !== 1) row = scaled(row.map((x) => (x / Math.max(...row)) ** (1 / temperature)));
  if (top_k < row.length) {
    const least = [...row].sort((a, b) => b - a)[top_k - 1];
    row = scaled(row.map((x) => (x >= least ? x : 0)));
  }
  if (top_p === 1) return row;
  let dropped = 0;
  for (const k of row.map((_, k) => k).sort((a, b) => row[a] - row[b])) {
    dropped += row[k];
    if (dropped > 1 - top_p + TINY) break;
    row = row.with(k, 0);
  }
  return scaled(row);
}

// --- rules: (p, q, drafted, parameters) -> { stop: n + 1 chances, next: n + 1 rows } 

// a guess that was not made has q = 0, and is not accepted
const ratio = (p, q, x) => (q[x] > 0 ? p[x] / q[x] : 0);
const passes = (p, q, x) => Math.min(1, ratio(p, q, x));
const entropy = (row) => -sum(row.map((x) => (x > 0 ? x * Math.log(x) : 0)));

function without(p, x) {
  const rest = p.with(x, 0);
  return sum(rest) > 0 ? scaled(rest) : p;
}

function stops(accept) {
  let reached = 1;
  const stop = accept.map((a) => [reached * (1 - a), (reached *= a)][0]);
  return [...stop, reached];
}

// a rule that tests one guess after the other: its chance to accept, and the row to draw from after a rejection
const chain = (accept, rejected = residual, bonus = (p) => p) => (p, q, drafted, parameters) => ({
  stop: stops(drafted.map((x, k) => accept(p[k], q[k], x, parameters))),
  next: [...drafted.map((x, k) => rejected(p[k], q[k], x, parameters)), bonus(p[drafted.length])],
});

function block(p, q, drafted) {
  const n = drafted.length;
  const pass = [1];
  const next = [];
  let weight = 1;
  for (let k = 0; k < n; k++) {
    const excess = pairs(p[k], q[k], (a, b) => Math.max(weight * a - b, 0));
    const mass = sum(excess);
    if (k) pass.push(mass > 0 ? mass / (mass + (1 - weight)) : 0);
    next.push(mass > 0 ? scaled(excess) : p[k]);
    weight = Math.min(1, weight * ratio(p[k], q[k], drafted[k]));
  }
  if (n) pass.push(weight);
  let later = 1; // no place behind this one passes
  const stop = pass.map(() => 0);
  for (let k = n; k >= 0; k--) {
    stop[k] = pass[k] * later;
    later *= 1 - pass[k];
  }
  return { stop, next: [...next, p[n]] };
}

// the token rule on a tree: guess k follows guess parents[k], or the text (-1); siblings are tried in order
export function tree(p, q, drafted, parents) {
  const next = [...p];
  const reached = [1];
  const missed = p.map(() => 1);
  parents.forEach((parent, k) => {
    const at = parent + 1;
    const accept = passes(next[at], q[k], drafted[k]);
    reached.push(reached[at] * missed[at] * accept);
    missed[at] *= 1 - accept;
    next[at] = residual(next[at], q[k]);
  });
  return { stop: pairs(reached, missed, (a, b) => a * b), next };
}

// one number u for all tests of a round: k pass when u lies below each of the first k ratios
function reseeded(p, q, drafted) {
  const reached = [1];
  drafted.forEach((x, k) => reached.push(Math.min(reached[k], passes(p[k], q[k], x))));
  return { stop: reached.map((r, k) => r - (reached[k + 1] ?? 0)), next: chain(passes)(p, q, drafted).next };
}

// one number u a place: x is drafted if low <= u < high, kept if u < ratio, else replaced by the residual's token at u
function sharedNoise(p, q, x) {
  const high = sum(q.slice(0, x + 1));
  const accept = passes(p, q, x);
  const low = high - q[x];
  let end = 0;
  const hit = residual(p, q).map((r) => Math.max(0, Math.min((end += r), high) - Math.max(end - r, low, accept)));
  return {
    accept: q[x] > 0 ? Math.min(1, Math.max(0, Math.min(high, accept) - low) / q[x]) : 0,
    rejected: sum(hit) > 0 ? scaled(hit) : residual(p, q),
  };
}

// x won the race argmin E / q at a time t; y then enters the race for the residual at t q(y) / r(y), with rate r(y)
function reusedNoise(p, q) {
  const r = residual(p, q);
  const entry = pairs(q, r, (b, c) => (c > 0 ? b / c : Infinity));
  const order = r.map((_, k) => k).filter((k) => r[k] > 0).sort((a, b) => entry[a] - entry[b]);
  const won = r.map(() => 0);
  let rate = 0;
  let lead = 0;
  order.forEach((k, place) => {
    rate += r[k];
    lead += q[k];
    const end = place + 1 < order.length ? entry[order[place + 1]] : Infinity;
    const stretch = (1 / (1 + rate * entry[k] - lead) - 1 / (1 + rate * end - lead)) / rate;
    for (const inRace of order.slice(0, place + 1)) won[inRace] += r[inRace] * stretch;
  });
  return won;
}

function branchesApart(p, q, drafted) {
  const { stop, next } = RULES.match.law(p, q, drafted);
  // the other branch's token, matched by a draw of its own
  const second = pairs(p[0], q[0] ?? p[0].map(() => 0), (a, b) => a * b);
  return { stop, next: [pairs(second, next[0], (s, r) => s + (1 - sum(second)) * r), ...next.slice(1)] };
}

export const SETTINGS = {
  none: {},
  "temperature 0.5": { temperature: 0.5 },
  "top-k 2": { top_k: 2 },
  "top-p 0.8": { top_p: 0.8 },
};

// less than the nucleus: the token that crosses the line is left out
function shortNucleus(row) {
  let total = 0;
  const kept = row.map(() => 0);
  for (const k of row.map((_, k) => k).sort((a, b) => row[b] - row[a])) {
    total += row[k];
    if (total > 0.8 + TINY && sum(kept) > 0) break;
    kept[k] = row[k];
  }
  return scaled(kept);
}

const [LOSSLESS, LOSSY] = ["lossless", "lossy"];

// law; kind (else an exhibit of the museum); setting: the one it goes wrong under; sees(a row of p, is it the last);
// proposes(q) -> [what guesses are drawn from, what the rule is told]
export const RULES = {
  token: { kind: LOSSLESS, law: chain(passes) },
  block: { kind: LOSSLESS, law: block },
  match: {
    kind: LOSSLESS,
    law: chain((p, q, x) => (q[x] > 0 ? p[x] : 0), (p, q, x) => (q[x] > 0 ? without(p, x) : p)),
  },
  typical: {
    kind: LOSSY,
    law: chain(
      (p, q, x, { epsilon = 0.09, delta = 0.3 } = {}) =>
        +(q[x] > 0 && p[x] > Math.min(epsilon, delta * Math.exp(-entropy(p)))),
      (p) => p,
    ),
  },
  lenience: {
    kind: LOSSY,
    law: chain(
      (p, q, x, { lenience = 0.5 } = {}) => Math.min(1, ratio(p, q, x) / lenience),
      (p, q, x, { lenience = 0.5 } = {}) => residual(p, q.map((y) => lenience * y)),
    ),
  },
  ensemble: {
    kind: LOSSY,
    law: chain((p, q, x, { weight = 0.5 } = {}) => (q[x] > 0 ? Math.min(1, 1 - weight + weight * ratio(p, q, x)) : 0)),
  },
  threshold: { law: chain((p, q, x) => +(q[x] <= p[x] + TINY)) },
  "argmax draft": { law: chain(passes), proposes: (q) => [point(favourite(q), q.length), q] },
  "one-sided top-k": { law: chain(passes), proposes: (q) => [filtered(q, { top_k: 2 }), q] },
  "resample from p": { law: chain(passes, (p) => p) },
  "all accepted": { law: chain(() => 1, (p) => p) },
  "argmax bonus": { law: chain(passes, residual, (p) => point(favourite(p), p.length)) },
  reseeded: { law: reseeded },
  "shared noise": { law: chain((...at) => sharedNoise(...at).accept, (...at) => sharedNoise(...at).rejected) },
  "reused noise": { law: chain(passes, reusedNoise) },
  "short nucleus": { law: chain(passes), setting: "top-p 0.8", sees: shortNucleus },
  "r <= ratio": {
    setting: "top-k 2",
    law: chain((p, q, x) => Math.min(1, (Math.floor(256 * passes(p, q, x) + TINY) + 1) / 256)),
  },
  "squared ratio": { law: chain((p, q, x) => passes(p, q, x) ** 2) },
  "branches apart": { law: branchesApart },
  "dropped draft": {
    law: chain(
      (p, q, x) => (q[x] < 0.2 - TINY ? 0 : passes(p, q, x)),
      (p, q, x) => (q[x] < 0.2 - TINY ? p : residual(p, q)),
    ),
  },
  "raw bonus": {
    setting: "temperature 0.5",
    law: chain(passes),
    sees: (row, last) => (last ? row : filtered(row, { temperature: 0.5 })),
  },
};

// A rule among settings, as a loop runs it. Rows come as the models give them, before any setting.
export function loopOf(name, setting = {}) {
  const rule = RULES[name];
  if (rule.setting) setting = SETTINGS[rule.setting];
  const right = (row) => filtered(row, setting);
  const { law, sees = right, proposes = (q) => [q, q] } = rule;
  return { law, right, sees, proposes: (q) => proposes(right(q)) };
}

// --- texts: target and draft are functions from a text, an array of tokens, to a row 

const toText = (key) => (key ? key.split(",").map(Number) : []);

function* drafts(loop, draft, text, n) {
  if (!n) return yield { drafted: [], q: [], chance: 1 };
  const [drawn, told] = loop.proposes(draft(text));
  for (const [x, chance] of drawn.entries())
    if (chance > 0)
      for (const rest of drafts(loop, draft, [...text, x], n - 1))
        yield { drafted: [x, ...rest.drafted], q: [told, ...rest.q], chance: chance * rest.chance };
}

const rowsOf = (loop, target, text, drafted) =>
  [...drafted, -1].map((_, k, { length }) => loop.sees(target([...text, ...drafted.slice(0, k)]), k + 1 === length));

// The law of the first `length` tokens, summed over every draft of every round: "0,2,1" -> its probability. A text ends
// with its first `eos`. A round drafts min(gamma, tokens still wanted - 1) tokens.
export function textLaw(loop, target, draft, gamma, length, eos = null, parameters = {}) {
  const finished = new Map();
  const growing = Array.from({ length }, () => new Map());
  growing[0].set("", 1);
  for (const [depth, level] of growing.entries())
    for (const [key, mass] of level) {
      const text = toText(key);
      for (const { drafted, q, chance } of drafts(loop, draft, text, Math.min(gamma, length - depth - 1))) {
        const { stop, next } = loop.law(rowsOf(loop, target, text, drafted), q, drafted, parameters);
        for (const [k, here] of stop.entries())
          for (const [x, given] of next[k].entries()) {
            const weight = mass * chance * here * given;
            if (!(weight > 0)) continue;
            let written = [...text, ...drafted.slice(0, k), x];
            const end = written.indexOf(eos);
            if (end >= 0) written = written.slice(0, end + 1);
            const into = end >= 0 || written.length === length ? finished : growing[written.length];
            into.set(written.join(), (into.get(written.join()) ?? 0) + weight);
          }
      }
    }
  return finished;
}

// What the user asked for: the target's own texts under the settings.
export const plainLaw = (loop, target, length, eos = null) =>
  textLaw({ law: RULES.token.law, sees: loop.right, proposes: (q) => [q, q] }, target, target, 0, length, eos);

// The mean number of accepted guesses in a first round of `gamma`.
export function meanAccepted(loop, target, draft, gamma) {
  let mean = 0;
  for (const { drafted, q, chance } of drafts(loop, draft, [], gamma))
    mean += chance * sum(loop.law(rowsOf(loop, target, [], drafted), q, drafted).stop.map((s, k) => k * s));
  return mean;
}

// --- chance ------------------------------------------------------------------

function mixed(x) {
  x = Math.imul(x ^ (x >>> 16), 0x21f0aaad);
  x = Math.imul(x ^ (x >>> 15), 0x735a2d97);
  return (x ^ (x >>> 15)) >>> 0;
}

// Uniform numbers in [0, 1) that depend on the seed alone.
export function generator(seed) {
  let state = mixed(seed + 0x51ab3c7d);
  return () => mixed((state = (state + 0x9e3779b9) | 0)) / 2 ** 32;
}

// The token that a uniform number stands for: the first whose cumulative probability lies above it.
export function pick(row, uniform) {
  let left = uniform * sum(row);
  let last = 0;
  for (const [k, x] of row.entries()) {
    if (!(x > 0)) continue;
    if (left < x) return k;
    left -= x;
    last = k;
  }
  return last;
}

export function drawRound(loop, target, draft, text, n, random) {
  const drafted = [];
  const q = [];
  while (drafted.length < n) {
    const [drawn, told] = loop.proposes(draft([...text, ...drafted]));
    drafted.push(pick(drawn, random()));
    q.push(told);
  }
  const { stop, next } = loop.law(rowsOf(loop, target, text, drafted), q, drafted);
  const [u, v] = [random(), random()];
  const kept = pick(stop, u);
  return { drafted, kept, token: pick(next[kept], v), u, v };
}

export function drawText(loop, target, draft, gamma, length, random) {
  const text = [];
  while (text.length < length) {
    const n = Math.min(gamma, length - text.length - 1);
    const { drafted, kept, token } = drawRound(loop, target, draft, text, n, random);
    text.push(...drafted.slice(0, kept), token);
  }
  return text;
}

// --- statistics --------------------------------------------------------------

const LANCZOS = [
  676.5203681218851, -1259.1392167224028, 771.32342877765313, -176.61502916214059, 12.507343278686905,
  -0.13857109526572012, 9.9843695780195716e-6, 1.5056327351493116e-7,
];

function logGamma(x) {
  const t = x + 6.5;
  const series = LANCZOS.reduce((total, c, k) => total + c / (x + k), 0.99999999999980993);
  return 0.5 * Math.log(2 * Math.PI) + (x - 0.5) * Math.log(t) - t + Math.log(series);
}

// The chance that a chi-square of that many degrees of freedom is at least x: the incomplete gamma function, by its
// series or its continued fraction.
export function chiSquareTail(x, dof) {
  const [a, y] = [dof / 2, x / 2];
  if (!(y > 0)) return 1;
  const scale = Math.exp(a * Math.log(y) - y - logGamma(a));
  if (y < a + 1) {
    let term = 1 / a;
    let total = term;
    for (let k = 1; term > total * 1e-16; k++) total += term *= y / (a + k);
    return 1 - scale * total;
  }
  let b = y + 1 - a;
  let c = 1e300;
  let d = 1 / b;
  let fraction = d;
  for (let k = 1; k < 500; k++) {
    const step = -k * (k - a);
    b += 2;
    d = 1 / (step * d + b);
    c = b + step / c;
    fraction *= c * d;
    if (Math.abs(c * d - 1) < 1e-15) break;
  }
  return scale * fraction;
}

// Do the counts come from the law? A G-test; cells expected below 5 are pooled; one draw where the law is 0 settles it.
export function gTest(counts, law) {
  const n = sum(counts);
  if (counts.some((count, k) => count && !(law[k] > 0)))
    return { statistic: Infinity, dof: law.filter((x) => x > 0).length - 1, p: 0, n };
  const cells = law.map((x, k) => [n * x, counts[k]]).filter(([e]) => e > 0).sort(([a], [b]) => b - a);
  const groups = [];
  let pool = null;
  let rest = sum(cells.map(([e]) => e));
  for (const [expected, seen] of cells) {
    rest -= expected;
    if (!pool && expected >= 5 && (rest >= 5 - 1e-9 || cells.every(([e]) => e >= 5))) groups.push([expected, seen]);
    else if (pool) pairs(pool, [expected, seen], (_, x) => x).forEach((x, k) => (pool[k] += x));
    else groups.push((pool = [expected, seen]));
  }
  if (groups.length < 2) return { statistic: 0, dof: 0, p: 1, n };
  const statistic = Math.max(0, 2 * sum(groups.map(([e, o]) => (o ? o * Math.log(o / e) : 0))));
  return { statistic, dof: groups.length - 1, p: chiSquareTail(statistic, groups.length - 1), n };
}

// The mean distance of n draws' shares from the law that they do come from: de Moivre's mean deviation of each count.
export function expectedVariation(law, n) {
  return sum(
    law.map((x) => {
      const k = Math.floor(n * x) + 1;
      if (!(x > 0) || k > n) return 0;
      const ways = logGamma(n + 1) - logGamma(k + 1) - logGamma(n - k + 1);
      return (k * (1 - x) * Math.exp(ways + k * Math.log(x) + (n - k) * Math.log1p(-x))) / n;
    }),
  );
}

// --- bars: four whole percentages that sum to 100 ----------------------------

// Whole percentages in proportion to the weights; what rounding leaves over goes to the largest remainders.
export function percents(weights, total = 100) {
  const exact = weights.map((w) => (total * w) / sum(weights));
  const whole = exact.map((x) => Math.floor(x + 1e-9));
  const order = exact.map((_, k) => k).sort((a, b) => exact[b] - whole[b] - (exact[a] - whole[a]));
  for (const k of order.slice(0, total - sum(whole))) whole[k]++;
  return whole;
}

// One bar is moved to `value`; the others share the rest as they did before.
export function moved(bars, at, value) {
  const others = bars.with(at, 0);
  const rest = percents(sum(others) ? others : bars.map((_, k) => +(k !== at)), 100 - value);
  return rest.with(at, value);
}

const START = { p: [40, 30, 20, 10], q: [15, 35, 10, 40] };
// --- the state, and the address that holds it --------------------------------

export const DEFAULTS = {
  ...START,
  ...{ set: "none", rule: "token", g: 2, n: 3, d: [0, 3, 1], round: 1, step: 0 },
  ...{ seed: 1, draws: 0, at: 0, real: 0, theme: "" },
};
export const MOST = 100000; // draws
const whole = (low, high) => (text) => (/^\d{1,9}$/.test(text) && +text >= low && +text <= high ? +text : undefined);
const among = (names) => (text) => (names.includes(text) ? text : undefined);
const bars = (text) => {
  const row = text.split("-").map(whole(0, 100));
  return row.length === 4 && sum(row) === 100 ? row : undefined;
};
const FIELDS = {
  p: bars,
  q: bars,
  set: among(Object.keys(SETTINGS)),
  rule: among(Object.keys(RULES)),
  g: whole(1, 3),
  n: whole(2, 4),
  d: (text) => (/^[A-D]{3}$/.test(text) ? [...text].map((c) => NAMES.indexOf(c)) : undefined),
  round: whole(1, 999999),
  step: whole(0, 3),
  seed: whole(1, 999999),
  draws: whole(0, MOST),
  at: whole(0, 255),
  real: whole(0, 999),
  theme: among(["light", "dark"]),
};
const NAMES = ["A", "B", "C", "D"];
const written = (key, value) => (key === "d" ? value.map((x) => NAMES[x]).join("") : [value].flat().join("-"));

// An address says what differs from the start; what it says wrongly is as if it were not there.
export function toHash(state) {
  const said = Object.keys(FIELDS).map((key) => [key, written(key, state[key])]);
  return new URLSearchParams(said.filter(([key, text]) => text !== written(key, DEFAULTS[key]))).toString();
}

export function fromHash(hash) {
  const said = new URLSearchParams(hash.replace(/^#/, ""));
  const read = Object.entries(FIELDS).map(([key, field]) => [key, field(said.get(key) ?? "") ?? DEFAULTS[key]]);
  const state = Object.fromEntries(read);
  state.at = Math.min(state.at, 4 ** state.n - 1);
  return state;
}

// The models of the page forget what was written: rows are made once, and a verdict depends on the guesses alone.
function remembering(loop, p, q) {
  const rows = [loop.sees(p, false), loop.sees(p, true)];
  const said = loop.proposes(q);
  const known = new Map();
  const law = (seen, told, drafted) => {
    const key = drafted.join();
    if (!known.has(key)) known.set(key, loop.law(seen, told, drafted));
    return known.get(key);
  };
  return { ...loop, sees: (_, last) => rows[+last], proposes: () => said, law };
}

// Everything that the page says of the models, the rule and the text.
export function computed(state) {
  const [target, draft] = [scaled(state.p), scaled(state.q)].map((row) => () => row);
  const loop = remembering(loopOf(state.rule, SETTINGS[state.set]), target(), draft());
  const p = loop.right(target());
  const [drawn, told] = loop.proposes(draft());
  const texts = Array.from({ length: 4 ** state.n }, (_, code) => code.toString(4).padStart(state.n, "0"));
  const [law, right] = [textLaw(loop, target, draft, state.g, state.n), plainLaw(loop, target, state.n)].map((map) =>
    texts.map((text) => map.get([...text].join()) ?? 0),
  );
  const turn = state.step ? drawRound(loop, target, draft, [], state.g, generator(state.round)) : null;
  const drafted = (turn?.drafted ?? state.d).slice(0, state.g);
  const rows = rowsOf(loop, target, [], drafted);
  const verdict = loop.law(rows, drafted.map(() => told), drafted);
  const accepted = meanAccepted(loop, target, draft, state.g);
  const [seen, last] = [rows[0], rows.at(-1)];
  return { loop, target, draft, p, seen, last, drawn, told, texts, law, right, turn, drafted, verdict, accepted };
}
