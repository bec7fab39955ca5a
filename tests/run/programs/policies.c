/* Calls of memory policy without libnuma, for a static program: prints a line each, which the test compares. */

#define _GNU_SOURCE
#include <errno.h>
#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define PAGE 4096UL
#define PAGES 8

static int where(void *address)
{
	int node = -1;
	if (syscall(SYS_get_mempolicy, &node, NULL, 0, address, 3))
		return -errno;
	return node;
}

static long mbind_to(void *address, unsigned long length, int mode, unsigned long mask, unsigned flags)
{
	return syscall(SYS_mbind, address, length, mode, &mask, 65, flags) ? -errno : 0;
}

static void show(const char *what, char *memory)
{
	printf("%s:", what);
	for (int i = 0; i < PAGES; i++)
		printf(" %d", where(memory + i * PAGE));
	printf("\n");
}

int main(void)
{
	unsigned long mask;
	int status[PAGES], nodes[PAGES], mode = -1;
	unsigned cpu = 99, node = 99;
	void *pages[PAGES];
	cpu_set_t cpus;
	char *memory = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	setvbuf(stdout, NULL, _IOLBF, 0);
	memset(memory, 1, PAGES * PAGE);
	show("local", memory);
	printf("strict: %ld\n", mbind_to(memory, PAGES * PAGE, 2, 1 << 2, 1));
	printf("move: %ld\n", mbind_to(memory, PAGES * PAGE, 2, 1 << 2, 3));
	show("moved", memory);
	printf("bad mode: %ld\n", mbind_to(memory, PAGES * PAGE, 77, 1, 0));
	printf("bad pointer: %ld\n", syscall(SYS_mbind, memory, PAGE, 2, (void *)8, 65, 0) ? -(long)errno : 0);
	printf("hole: %ld\n", mbind_to((void *)PAGE, PAGE, 2, 1, 0));
	for (int i = 0; i < PAGES; i++) {
		pages[i] = memory + i * PAGE;
		nodes[i] = i % 4;
		status[i] = -99;
	}
	printf("move_pages: %ld\n", syscall(SYS_move_pages, 0, PAGES, pages, nodes, status, 2));
	for (int i = 0; i < PAGES; i++)
		printf("%d ", status[i]);
	printf("\n");
	show("one by one", memory);
	mask = 1 << 1 | 1 << 3;
	printf("set: %ld\n", syscall(SYS_set_mempolicy, 3, &mask, 65));
	mask = 0;
	printf("get: %ld", syscall(SYS_get_mempolicy, &mode, &mask, 65, NULL, 0));
	printf(" %d %#lx\n", mode, mask);
	memory = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	memset(memory, 1, PAGES * PAGE);
	show("interleaved", memory);
	printf("getcpu: %ld", syscall(SYS_getcpu, &cpu, &node, NULL));
	printf(" %u %u\n", cpu, node);
	if (fork() == 0) {
		char *own = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
		show("child, inherited", memory);
		memset(own, 1, PAGES * PAGE);
		show("child, new", own);
		_exit(0);
	}
	wait(NULL);
	printf("default: %ld\n", syscall(SYS_set_mempolicy, 0, NULL, 0));
	CPU_ZERO(&cpus);
	CPU_SET(2, &cpus);
	CPU_SET(3, &cpus);
	printf("affinity: %d", sched_setaffinity(0, sizeof cpus, &cpus));
	printf(" %d", sched_getcpu());
	CPU_ZERO(&cpus);
	printf(" %d", sched_getaffinity(0, sizeof cpus, &cpus));
	printf(" %d\n", CPU_COUNT(&cpus));
	memory = mmap(NULL, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	memset(memory, 1, PAGES * PAGE);
	show("local again", memory);
	return 7;
}
