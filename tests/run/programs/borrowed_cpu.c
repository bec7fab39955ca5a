/* Asks for its CPU until that makes no call any more; a child with its memory then moves, and both ask on.

   Argument: sibling: the child is one of its parent. */

#define _GNU_SOURCE
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/wait.h>

enum { ROUND = 1000, ROUNDS_MAX = 2000, ASKED = 60 * ROUND };

static char stack[1 << 16] __attribute__((aligned(16)));
static atomic_int moved, done, result;

static long slept(void)
{
	struct rusage usage;

	getrusage(RUSAGE_THREAD, &usage);
	return usage.ru_nvcsw;
}

/* How many of so many calls have not told this CPU. */
static int wrong(int cpu, int calls)
{
	int found = 0;

	while (calls--)
		found += sched_getcpu() != cpu;
	return found;
}

static int child(void *unused)
{
	cpu_set_t cpus;

	(void)unused;
	CPU_ZERO(&cpus);
	CPU_SET(2, &cpus);
	if (sched_setaffinity(0, sizeof(cpus), &cpus))
		atomic_store(&result, 1);
	atomic_store(&moved, 1);
	while (!atomic_load(&done))
		if (wrong(2, ROUND))
			atomic_store(&result, 2);
	if (wrong(2, 1))
		atomic_store(&result, 3);
	atomic_store(&moved, 2);
	return 0;
}

int main(int count, char **words)
{
	int flags = count > 1 && !strcmp(words[1], "sibling") ? CLONE_PARENT : 0;
	int rounds = 0;
	long before;

	do {
		before = slept();
		if (wrong(0, ROUND) || ++rounds > ROUNDS_MAX)
			return 10;
	} while (slept() - before > ROUND / 10);
	if (clone(child, stack + sizeof(stack), CLONE_VM | SIGCHLD | flags, NULL) < 0)
		return 11;
	while (!atomic_load(&moved))
		sched_yield();
	if (wrong(0, ASKED))
		return 12;
	atomic_store(&done, 1);
	while (atomic_load(&moved) != 2)
		sched_yield();
	return atomic_load(&result) ? atomic_load(&result) : wrong(0, 1);
}
