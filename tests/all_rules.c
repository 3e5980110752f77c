// Every rule and every kind of case of the exactness vectors, in C: a program that states its law, for certify.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define V 5      // tokens at most
#define N 8      // guesses at most
#define TEXTS 400 // texts of all lengths at most

static int v; // tokens of this case

static const char *behind(const char *s, const char *key) { // what stands behind a key
  s = strstr(s, key);
  return s ? s + strlen(key) + 1 : NULL;
}

static int numbers(const char *s, const char *key, double *out) { // those in lists or tables behind a key; -1: null
  int depth = 0, count = 0;
  if (!(s = behind(s, key)) || *s == 'n') return -1;
  do {
    if (strchr("[{", *s)) depth++, s++;
    else if (strchr("]}", *s)) depth--, s++;
    else if (*s == '"') s = strchr(s + 1, '"') + 1; // the prefixes of a table stand in their order
    else if (strchr(", :", *s)) s++;
    else out[count++] = strtod(s, (char **)&s);
  } while (depth);
  return count;
}

static double parameter(const char *s, const char *key, double otherwise) {
  const char *found = behind(s, key);
  return found ? strtod(found, NULL) : otherwise;
}

static double normal(double *row) {
  double sum = 0;
  for (int x = 0; x < v; x++) sum += row[x];
  for (int x = 0; x < v && sum > 0; x++) row[x] /= sum;
  return sum;
}

static void above(const double *p, const double *q, double weight, double share, double *out) { // weight p over share q
  double left[V];
  for (int x = 0; x < v; x++) left[x] = fmax(weight * p[x] - share * q[x], 0);
  memcpy(out, normal(left) > 0 ? left : p, sizeof(double) * v);
}

static void filter(double *row, double temperature, int top_k, double top_p) {
  double kept[V] = {0}, sum = 0;
  for (int x = 0; x < v; x++) row[x] = pow(row[x], 1 / temperature);
  for (int round = 0; round < 2; round++) { // the k most probable; then the fewest that make up top_p
    normal(row), memset(kept, 0, sizeof kept), sum = 0;
    for (int i = 0; i < (round ? v : top_k) && (round == 0 || sum < top_p - 1e-12); i++) {
      int best = 0;
      for (int x = 1; x < v; x++) if (row[x] > row[best]) best = x;
      sum += row[best], kept[best] += row[best], row[best] = 0; // the best of what is left: perhaps 0
    }
    memcpy(row, kept, sizeof(double) * v);
  }
  normal(row);
}

static void chain(const char *rule, const char *line, int n, double p[][V], double q[][V], const int *x, double *stop,
                  double next[][V]) {
  double w[N + 1] = {1}, pass[N + 1], after = 1, reached = 1, accept = 0;
  memcpy(next[n], p[n], sizeof(double) * v);
  if (!strncmp(rule, "block", 5)) {
    for (int k = 0; k <= n; k++) {
      double mass = 0;
      for (int y = 0; y < v && k < n; y++) mass += fmax(w[k] * p[k][y] - q[k][y], 0);
      pass[k] = k == 0 ? 1 : k == n ? w[k] : mass + 1 - w[k] > 1e-15 ? mass / (mass + 1 - w[k]) : 0;
      if (k < n) above(p[k], q[k], w[k], 1, next[k]), w[k + 1] = fmin(1, w[k] * p[k][x[k]] / q[k][x[k]]);
    }
    for (int k = n; k >= 0; k--) stop[k] = pass[k] * after, after *= 1 - pass[k];
    return;
  }
  for (int k = 0; k < n; k++, reached *= accept) {
    double ratio = p[k][x[k]] / q[k][x[k]], share = 1, entropy = 0;
    if (*rule == 'm') { // match: the target's own draw is the same token
      accept = p[k][x[k]], memcpy(next[k], p[k], sizeof(double) * v), next[k][x[k]] = 0, normal(next[k]);
    } else if (!strncmp(rule, "typical", 7)) {
      for (int y = 0; y < v; y++) if (p[k][y] > 0) entropy -= p[k][y] * log(p[k][y]);
      double bar = fmin(parameter(line, "\"epsilon\":", 0), parameter(line, "\"delta\":", 0) * exp(-entropy));
      accept = p[k][x[k]] > bar, memcpy(next[k], p[k], sizeof(double) * v);
    } else {
      double weight = *rule == 'e' ? parameter(line, "\"weight\":", 1) : 1;
      share = *rule == 'l' ? parameter(line, "\"lenience\":", 1) : 1;
      accept = fmin(1, 1 - weight + weight * ratio / share), above(p[k], q[k], 1, share, next[k]);
    }
    stop[k] = reached * (1 - accept);
  }
  stop[n] = reached;
}

static void tree(int n, double p[][V], double q[][V], const int *x, const double *parents, double *stop,
                 double next[][V]) {
  double reached[N + 1] = {1};
  for (int k = 0; k <= n; k++) {
    memcpy(next[k], p[k], sizeof(double) * v), stop[k] = reached[k];
    for (int i = 0; i < n; i++) if ((int)parents[i] + 1 == k) {
      double accept = q[i][x[i]] > 0 ? fmin(1, next[k][x[i]] / q[i][x[i]]) : 0;
      reached[i + 1] = stop[k] * accept, stop[k] *= 1 - accept, above(next[k], q[i], 1, 1, next[k]);
    }
  }
}

static void verify(const char *rule, const char *line) {
  double flat[(N + 1) * V], told[N * V], drafted[N], parents[N], mask[(N + 1) * V];
  double p[N + 1][V], q[N][V], stop[N + 1] = {0}, next[N + 1][V] = {{0}};
  int n = numbers(line, "\"drafted\":", drafted), made = 0, x[N];
  int is_tree = numbers(line, "\"parents\":", parents) >= 0, masked = numbers(line, "\"mask\":", mask) >= 0;
  v = numbers(line, "\"p\":", flat) / (n + 1), numbers(line, "\"q\":", told);
  for (int i = 0; i < n; i++) x[i] = drafted[i], memcpy(q[i], told + i * v, sizeof(double) * v);
  for (int k = 0; k <= n; k++) {
    for (int y = 0; y < v; y++) p[k][y] = flat[k * v + y] * (masked ? mask[k * v + y] : 1);
    normal(p[k]);
  }
  while (made < n && q[made][x[made]] > 0) made++;
  if (is_tree) tree(n, p, q, x, parents, stop, next);
  else chain(rule, line, made, p, q, x, stop, next);
  for (int k = 0; k <= n; k++) printf("%s%.17g", k ? ", " : "\"stop\": [", stop[k]);
  for (int k = 0; k <= n; k++) {
    printf(k ? ", " : "], \"next\": [");
    if (!(stop[k] > 0)) printf("null");
    for (int y = 0; y < v && stop[k] > 0; y++) printf("%s%.17g%s", y ? ", " : "[", next[k][y], y == v - 1 ? "]" : "");
  }
  puts("]}");
}

static double P[TEXTS * V], Q[TEXTS * V], growing[TEXTS * V], finished[TEXTS * V];
static int gamma_, length, eos, first[10]; // first[d]: the place of the first text of d tokens

static void round_of(const char *rule, const char *line, int depth, int code, int n, int k, int *guesses, double mass) {
  int place = code; // of the guesses so far
  for (int i = 0; i < k; i++) place = place * v + guesses[i];
  if (k < n) {
    for (guesses[k] = 0; guesses[k] < v; guesses[k]++) {
      double chance = Q[(first[depth + k] + place) * v + guesses[k]];
      if (chance > 0) round_of(rule, line, depth, code, n, k + 1, guesses, mass * chance);
    }
    return;
  }
  double p[N + 1][V], q[N][V], stop[N + 1], next[N + 1][V];
  for (int i = 0, at = code; i <= n; at = at * v + (i < n ? guesses[i] : 0), i++) {
    memcpy(p[i], P + (first[depth + i] + at) * v, sizeof(double) * v);
    if (i < n) memcpy(q[i], Q + (first[depth + i] + at) * v, sizeof(double) * v);
  }
  chain(rule, line, n, p, q, guesses, stop, next);
  for (int s = 0; s <= n; s++) for (int y = 0; y < v; y++) {
    int at = code, end = depth, over = 0;
    for (int i = 0; i <= s && !over; i++) {
      int token = i < s ? guesses[i] : y;
      at = at * v + token, end++, over = token == eos;
    }
    (over || end == length ? finished : growing)[first[end] + at] += mass * stop[s] * next[s][y];
  }
}

static void write_text(const char *rule, const char *line) {
  int guesses[N], count = 1;
  v = parameter(line, "\"vocabulary\":", 0), length = parameter(line, "\"length\":", 0);
  gamma_ = parameter(line, "\"gamma\":", 0);
  eos = *behind(line, "\"eos\":") == 'n' ? -1 : (int)parameter(line, "\"eos\":", 0);
  double temperature = parameter(line, "\"temperature\":", 1), top_p = parameter(line, "\"top_p\":", 1);
  int rows = numbers(line, "\"p\":", P) / v, top_k = parameter(line, "\"top_k\":", v);
  numbers(line, "\"q\":", Q), memset(growing, 0, sizeof growing), memset(finished, 0, sizeof finished);
  for (int i = 0; i < rows * v; i += v) {
    filter(P + i, temperature, top_k, top_p), filter(Q + i, temperature, top_k, top_p);
  }
  for (int depth = 0, sum = 0; depth <= length; sum += count, count *= v, depth++) first[depth] = sum;
  growing[0] = 1, count = 1;
  for (int depth = 0; depth < length; depth++, count *= v) for (int code = 0; code < count; code++) {
    int n = gamma_ < length - depth - 1 ? gamma_ : length - depth - 1;
    double mass = growing[first[depth] + code];
    if (mass > 0) round_of(rule, line, depth, code, n, 0, guesses, mass);
  }
  const char *comma = "\"law\": {";
  for (int depth = 1, size = v; depth <= length; depth++, size *= v) for (int code = 0; code < size; code++) {
    if (!(finished[first[depth] + code] > 0)) continue;
    printf("%s\"", comma), comma = ", ";
    for (int i = 1, part = size / v; i <= depth; i++, part /= v) printf("%s%d", i > 1 ? "," : "", code / part % v);
    printf("\": %.17g", finished[first[depth] + code]);
  }
  puts("}}");
}

int main(void) {
  static char line[1 << 20];
  const char *rules = "[\"token\", \"block\", \"match\", \"typical\", \"lenience\", \"ensemble\"]";
  while (fgets(line, sizeof line, stdin)) {
    const char *id = strstr(line, "\"id\": "), *rule = behind(line, "\"rule\":");
    printf("{%.*s\", ", (int)strcspn(id + 7, "\"") + 7, id);
    if (strstr(line, "\"op\": \"hello\"")) printf("\"name\": \"C\", \"answers\": \"law\", \"rules\": %s}\n", rules);
    else if (strstr(line, "\"task\": \"text\"")) write_text(rule + 1, line);
    else verify(rule + 1, line);
    fflush(stdout);
  }
}
