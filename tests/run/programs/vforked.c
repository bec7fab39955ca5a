/* Children that have the memory of their parent until they execute a program: what they do to it is done to the parent's. */
#define _GNU_SOURCE
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define LENGTH (8 * 4096L)

static char stack[65536];
static char *memory, *program;

static long bind(char *start, unsigned long mask)
{
	return syscall(SYS_mbind, start, LENGTH, 2L, &mask, 65L, 0L);
}

static int binds(void *unused)
{
	return bind(memory, 4) != 0;
}

static int executes(void *unused)
{
	unsigned long mask = 8;

	if (syscall(SYS_set_mempolicy, 2L, &mask, 65L))
		return 1;
	execl(program, program, "child", NULL);
	return 2;
}

static int node(char *start)
{
	int found = -1;

	syscall(SYS_get_mempolicy, &found, 0L, 0L, start, 3L);
	return found;
}

static int run(int (*work)(void *))
{
	int status = -1;
	pid_t pid = clone(work, stack + sizeof stack, CLONE_VM | CLONE_VFORK | SIGCHLD, 0);

	waitpid(pid, &status, 0);
	return status;
}

int main(int count, char **words)
{
	unsigned long mask = 1;

	memory = mmap(0, LENGTH, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (count > 1) { /* executed by a child: its memory is its own */
		memset(memory, 1, LENGTH);
		return node(memory) != 3 || bind(memory, 1) != 0;
	}
	program = words[0];
	syscall(SYS_set_mempolicy, 2L, &mask, 65L);
	printf("%d ", run(binds));
	memset(memory, 1, LENGTH);
	printf("%d ", node(memory));
	printf("%d ", run(executes));
	printf("%d %d\n", node(memory), node(stack));
	return 0;
}
