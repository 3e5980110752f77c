// States the law of the token rule, on chains and trees. cc -o rule token_rule.c; python -m speclib certify -- ./rule
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
static int numbers(const char *s, const char *key, double *out) { // those in the lists behind a key; -1: null
  int depth = 0, count = 0;
  if (*(s = strstr(s, key) + strlen(key) + 1) == 'n') return -1;
  do {
    if (*s == '[' || *s == ']') depth += *s++ == '[' ? 1 : -1;
    else if (*s == ',' || *s == ' ') s++;
    else out[count++] = strtod(s, (char **)&s);
  } while (depth);
  return count; }
static char line[1 << 20], hello[] = "\"name\": \"token rule in C\", \"answers\": \"law\", \"skip\": [\"text\"]}";
int main(void) {
  static double p[4096], q[4096], drafted[64], parents[64], mask[4096], reached[65], missed[65];
  while (fgets(line, sizeof line, stdin)) {
    const char *id = strstr(line, "\"id\": ");
    printf("{%.*s\", ", (int)strcspn(id + 7, "\"") + 7, id);
    if (strstr(line, "\"op\": \"hello\"")) { puts(hello), fflush(stdout); continue; }
    int n = numbers(line, "\"drafted\":", drafted), v = numbers(line, "\"p\":", p) / (n + 1);
    int chain = numbers(line, "\"parents\":", parents) < 0, masked = numbers(line, "\"mask\":", mask) >= 0;
    numbers(line, "\"q\":", q);
    for (int k = 0; k <= n; k++) { // p[k] becomes what the guesses tried behind k leave of it
      double *left = p + k * v, sum = 0;
      for (int x = 0; x < v; x++) sum += left[x] *= masked ? mask[k * v + x] : 1;
      for (int x = 0; x < v; x++) left[x] /= sum, reached[0] = missed[k] = 1;
      for (int i = 0; i < n; i++) if ((chain ? i : (int)parents[i] + 1) == k) {
        int token = drafted[i];
        double *given = q + i * v, ratio = given[token] > 0 ? left[token] / given[token] : 0;
        ratio = ratio < 1 ? ratio : 1, sum = 0, reached[i + 1] = reached[k] * missed[k] * ratio, missed[k] *= 1 - ratio;
        for (int x = 0; x < v; x++) sum += left[x] > given[x] ? left[x] - given[x] : 0;
        for (int x = 0; x < v && sum > 0; x++) left[x] = left[x] > given[x] ? (left[x] - given[x]) / sum : 0;
      }
    }
    for (int k = 0; k <= n; k++) printf("%s%.17g", k ? ", " : "\"stop\": [", reached[k] * missed[k]);
    for (int i = 0; i < (n + 1) * v; i++) printf("%s%.17g", i % v ? ", " : i ? "], [" : "], \"next\": [[", p[i]);
    puts("]]}"), fflush(stdout);
  }
}
