/* A chain of processes, each of which begins the next one and ends, for as long as calls of their ancestor take. */

#define _GNU_SOURCE
#include <sched.h>
#include <stdatomic.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { LENGTH_MAX = 5000, BEFORE = 20 };

struct shared {
	atomic_int length, stop;
};

static void chain(struct shared *shared)
{
	while (!atomic_load(&shared->stop) && atomic_load(&shared->length) < LENGTH_MAX) {
		if (fork())
			_exit(0);
		atomic_fetch_add(&shared->length, 1);
		usleep(3000);
	}
	_exit(0);
}

int main(void)
{
	struct shared *shared = mmap(NULL, sizeof(*shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
	unsigned long mask = 2;
	int status;

	if (!fork())
		chain(shared);
	wait(&status);
	while (atomic_load(&shared->length) < BEFORE)
		sched_yield();
	if (syscall(SYS_set_mempolicy, 2, &mask, 65UL) || syscall(SYS_mbind, shared, 4096UL, 2, &mask, 65UL, 0))
		return 1;
	atomic_store(&shared->stop, 1);
	return atomic_load(&shared->length) == LENGTH_MAX;
}
