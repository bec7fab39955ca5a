/* The first thread ends; another one asks for its CPU until that makes no call any more, moves, and asks on. */

#define _GNU_SOURCE
#include <pthread.h>
#include <sched.h>
#include <stdlib.h>
#include <sys/resource.h>

enum { ROUND = 1000, ROUNDS_MAX = 2000 };

static pthread_t first;

/* How many of a round of calls have not told this CPU; -1: they made this thread sleep. */
static int wrong(int cpu)
{
	struct rusage before, after;
	int found = 0;

	getrusage(RUSAGE_THREAD, &before);
	for (int i = 0; i < ROUND; i++)
		found += sched_getcpu() != cpu;
	getrusage(RUSAGE_THREAD, &after);
	if (!found && after.ru_nvcsw - before.ru_nvcsw > ROUND / 10)
		return -1;
	return found;
}

static int told(int cpu)
{
	int found = -1;

	for (int i = 0; found < 0 && i < ROUNDS_MAX; i++)
		found = wrong(cpu);
	return found;
}

static void *body(void *unused)
{
	cpu_set_t cpus;

	(void)unused;
	pthread_join(first, NULL);
	if (told(0))
		exit(1);
	CPU_ZERO(&cpus);
	CPU_SET(2, &cpus);
	if (sched_setaffinity(0, sizeof(cpus), &cpus))
		exit(2);
	if (sched_getcpu() != 2)
		exit(3);
	exit(told(2) ? 4 : 0);
}

int main(void)
{
	pthread_t other;

	first = pthread_self();
	if (sched_getcpu()) /* it is known to have been there */
		return 6;
	if (pthread_create(&other, NULL, body, NULL))
		return 5;
	pthread_exit(NULL);
}
