/* Processes end, and another one gets the number of the last of them while the supervisor is busy with the others. */

#define _GNU_SOURCE
#include <fcntl.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

enum { CROWD = 40, ROUNDS = 8, OLD_CPU = 1 };

static int cpu(void)
{
	unsigned found = 99, node;

	syscall(SYS_getcpu, &found, &node, NULL);
	return found;
}

/* A process that is known, on that CPU, and waits. */
static pid_t begun(int on)
{
	int ready[2];
	char byte;

	pipe(ready);
	pid_t pid = fork();
	if (!pid) {
		unsigned long mask = 1UL << on;

		if (on)
			syscall(SYS_sched_setaffinity, 0, sizeof mask, &mask);
		cpu();
		write(ready[1], "x", 1);
		pause();
	}
	read(ready[0], &byte, 1);
	close(ready[0]);
	close(ready[1]);
	return pid;
}

static void end(const pid_t *pids, int count)
{
	for (int i = 0; i < count; i++)
		kill(pids[i], SIGKILL);
	for (int i = 0; i < count; i++)
		waitpid(pids[i], NULL, 0);
}

static void ask_for(pid_t pid)
{
	int last = open("/proc/sys/kernel/ns_last_pid", O_WRONLY); /* which is not handed over */

	dprintf(last, "%d", pid - 1);
	close(last);
}

int main(void)
{
	cpu();
	for (int round = 0; round < ROUNDS;) {
		pid_t crowd[CROWD], old, new;
		int status;

		for (int i = 0; i < CROWD; i++)
			crowd[i] = begun(0);
		old = begun(OLD_CPU);
		end(crowd, CROWD);
		usleep(1000 * round); /* others are forgotten for so long */
		end(&old, 1);
		ask_for(old);
		new = fork();
		if (!new)
			_exit(cpu());
		waitpid(new, &status, 0);
		if (new != old) /* somebody was quicker */
			continue;
		printf("%d", WEXITSTATUS(status));
		round++;
	}
	printf("\n");
	return 0;
}
