/* Asks for its CPU until that makes no call any more; a child with its memory then moves, and both ask on. */

#define _GNU_SOURCE
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/wait.h>

enum { ROUND = 1000, ASKED = 20 * ROUND };

static char stack[1 << 16] __attribute__((aligned(16)));
static atomic_int moved, done;

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
		return 1;
	atomic_store(&moved, 1);
	if (wrong(2, ASKED))
		return 2;
	while (!atomic_load(&done))
		sched_yield();
	return wrong(2, 1) ? 3 : 0;
}

int main(void)
{
	long before;
	int pid, status;

	do {
		before = slept();
		if (wrong(0, ROUND))
			return 10;
	} while (slept() - before > ROUND / 10);
	pid = clone(child, stack + sizeof(stack), CLONE_VM | SIGCHLD, NULL);
	if (pid < 0)
		return 11;
	while (!atomic_load(&moved))
		if (waitpid(pid, &status, WNOHANG))
			return 12;
	if (wrong(0, ASKED))
		return 13;
	atomic_store(&done, 1);
	if (waitpid(pid, &status, 0) != pid || !WIFEXITED(status))
		return 14;
	return WEXITSTATUS(status) ? WEXITSTATUS(status) : wrong(0, 1);
}
