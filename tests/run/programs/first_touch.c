/* Threads that OpenMP spreads over the CPUs touch a part of one range each; then it is asked where the pages are. */

#define _GNU_SOURCE
#include <omp.h>
#include <stdio.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

enum { PAGE = 4096, THREADS = 8, PAGES = 1 << 11, NODES = 4 };

static void *pages[PAGES];
static int statuses[PAGES];

int main(void)
{
	int counts[NODES] = {0};
	char *memory = mmap(0, PAGES * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
#pragma omp parallel for num_threads(THREADS) schedule(static)
	for (int page = 0; page < PAGES; page++)
		memory[page * PAGE] = 1;
	for (int page = 0; page < PAGES; page++)
		pages[page] = memory + page * PAGE;
	if (syscall(SYS_move_pages, 0, (long)PAGES, pages, (void *)0, statuses, 0L))
		return 1;
	for (int page = 0; page < PAGES; page++)
		if (statuses[page] >= 0 && statuses[page] < NODES)
			counts[statuses[page]]++;
	for (int node = 0; node < NODES; node++)
		printf("%d%c", counts[node], node < NODES - 1 ? ' ' : '\n');
}
