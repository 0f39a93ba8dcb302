// What the parts of the hostile payload have in common.
#define _GNU_SOURCE
#define CONTROL "/.latebind/control"
#define ABSTRACT "latebind-neighbour"
#define PORT 7777
#define MARK "a neighbour's secret"

void say(const char *name, int reached, const char *detail);
// A call that must fail: what it answered, and why.
void tried(const char *name, long answer);
void rights(void);
void shared(void);
void control(void);
