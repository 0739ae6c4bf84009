/* libnetfilter_queue, with the functions most of its users call (nfq_open, nfq_handle_packet,
 * nfq_set_verdict).
 *
 * default: the loop of its documentation: whole packets, a verdict per packet, and a buffer that
 *   has room for the largest packet (one of 64 KiB, often seen, has not: what stands before the
 *   packet takes some hundred bytes, and a message that was cut off is never judged).
 * best: what the documentation's section on performance and the header offer beyond that:
 *   GSO (NFQA_CFG_F_GSO), NETLINK_NO_ENOBUFS, a receive buffer of 8 MiB, and
 *   nfq_set_verdict_batch for packets that need nothing but a verdict: all that wait are received,
 *   up to BATCH, and answered by one message. The batch ends as soon as the queue is empty, so that
 *   no packet waits for another.
 *   nfq_set_verdict_batch2 would also set the mark, which nobody asked for.
 * With several queues each has a handle, and so a socket, and a thread of its own. */

#include <arpa/inet.h>
#include <errno.h>
#include <linux/netfilter.h>
#include <linux/netlink.h>
#include <netinet/in.h>
#include <poll.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include <libnetfilter_queue/libnetfilter_queue.h>

enum { BATCH = 64, QUEUE_LEN = 131072, MAX_QUEUES = 64 };
enum task { DROP, ACCEPT, FLIP, RECOMPUTE, RETAIN };

static enum task task = ACCEPT;
static bool best;
static long buffer;

/* A queue and the thread that judges its packets. */
struct worker {
	struct nfq_handle *handle;
	struct nfq_q_handle *queue;
	int fd;
	uint64_t calls;
	uint64_t seen; /* packets */
	uint32_t last; /* id of the packet received last, in a batch */
	uint32_t *held;
	size_t held_len, held_room;
	/* Under the lock: what it is to judge, and when it was done with that. */
	uint64_t share;
	struct timespec end;
	char packet[0xffff + 4096] __attribute__((aligned(8)));
};
static struct worker *workers[MAX_QUEUES];

/* For the shares of all workers. Packets are counted by each of them for itself: a counter in
 * common would cost every packet a cache line. */
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t ordered = PTHREAD_COND_INITIALIZER, finished = PTHREAD_COND_INITIALIZER;

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static void give_verdict(struct worker *worker, uint32_t id, uint32_t verdict, uint32_t len,
			 const unsigned char *packet)
{
	worker->calls++;
	if (nfq_set_verdict(worker->queue, id, verdict, len, packet) < 0)
		fail("nfq_set_verdict");
}

/* The sum of 32-bit words, folded later: the same 16 bits as that of 16-bit words (RFC 1071), in
 * the host's byte order. A plain loop: the compiler makes vector instructions of it. */
static uint64_t wide_sum(const unsigned char *bytes, size_t len)
{
	uint64_t sum = 0;
	uint32_t word;

	for (; len >= 4; bytes += 4, len -= 4) {
		memcpy(&word, bytes, 4);
		sum += word;
	}
	word = 0;
	memcpy(&word, bytes, len);
	return sum + word;
}

/* Changes the first byte that TCP or UDP carries and sets the checksum over the whole segment. By
 * hand: nfq_tcp_compute_checksum_ipv4 adds 16-bit words one by one. */
static bool recompute(unsigned char *packet, size_t len)
{
	size_t start, addresses, addresses_len, data, checksum;
	unsigned char protocol;
	uint16_t value;

	if (len >= 20 && packet[0] >> 4 == 4) {
		start = (packet[0] & 15) * 4;
		protocol = packet[9];
		addresses = 12, addresses_len = 8;
	} else if (len >= 40 && packet[0] >> 4 == 6) {
		start = 40;
		protocol = packet[6];
		addresses = 8, addresses_len = 32;
	} else {
		return false;
	}
	if (protocol == IPPROTO_TCP && len >= start + 20) {
		data = start + (packet[start + 12] >> 4) * 4;
		checksum = start + 16;
	} else if (protocol == IPPROTO_UDP && len >= start + 8) {
		data = start + 8;
		checksum = start + 6;
	} else {
		return false;
	}
	if (data < len)
		packet[data] ^= 1;
	memset(packet + checksum, 0, 2);
	uint64_t sum = wide_sum(packet + addresses, addresses_len) +
		       wide_sum(packet + start, len - start) +
		       htonl((uint32_t)(protocol + len - start));
	while (sum > 0xffff)
		sum = (sum & 0xffff) + (sum >> 16);
	value = ~(uint16_t)sum;
	if (value == 0)
		value = 0xffff; /* zero says "no checksum" in UDP; both mean the same in TCP */
	memcpy(packet + checksum, &value, 2);
	return true;
}

static int on_packet(struct nfq_q_handle *queue, struct nfgenmsg *message, struct nfq_data *data,
		     void *context)
{
	struct worker *worker = context;
	uint32_t id = ntohl(nfq_get_msg_packet_hdr(data)->packet_id);
	unsigned char *packet;
	int len;

	(void)queue;
	(void)message;
	worker->last = id;
	worker->seen++;
	if (task == RETAIN) {
		if (worker->held_len == worker->held_room) {
			worker->held_room = worker->held_room ? worker->held_room * 2 : 4096;
			worker->held = realloc(worker->held,
					       worker->held_room * sizeof *worker->held);
			if (!worker->held)
				fail("realloc");
		}
		worker->held[worker->held_len++] = id;
		return 0;
	}
	if (task == FLIP || task == RECOMPUTE) {
		len = nfq_get_payload(data, &packet);
		/* More than this is not copied whole; the rest would be gone for good. */
		if (len > 0 && len < 65531) {
			if (task == FLIP)
				packet[len - 1] ^= 0xff;
			else
				recompute(packet, len);
			give_verdict(worker, id, NF_ACCEPT, len, packet);
			return 0;
		}
	} else if (best) {
		return 0; /* the batch's verdict is for this one too */
	}
	give_verdict(worker, id, task == DROP ? NF_DROP : NF_ACCEPT, 0, NULL);
	return 0;
}

/* Receives a message and handles it. False: none came. */
static bool receive(struct worker *worker, int flags)
{
	int len;

	worker->calls++;
	len = recv(worker->fd, worker->packet, sizeof worker->packet, flags);
	if (len < 0 && errno != EAGAIN && errno != EINTR && errno != ENOBUFS)
		fail("recv");
	if (len > 0)
		nfq_handle_packet(worker->handle, worker->packet, len);
	return len > 0;
}

/* Receives what waits, up to a batch, and gives one verdict for all of it. */
static void judge_batch(struct worker *worker, uint64_t most)
{
	uint64_t first = worker->seen;

	if (!receive(worker, 0) || worker->seen == first)
		return;
	while (worker->seen - first < most && receive(worker, MSG_DONTWAIT))
		;
	worker->calls++;
	if (nfq_set_verdict_batch(worker->queue, worker->last,
				  task == DROP ? NF_DROP : NF_ACCEPT) < 0)
		fail("nfq_set_verdict_batch");
}

static void work(struct worker *worker, uint64_t packets)
{
	uint64_t end = worker->seen + packets, left;

	while (worker->seen < end) {
		left = end - worker->seen;
		if (best && (task == DROP || task == ACCEPT))
			judge_batch(worker, left < BATCH ? left : BATCH);
		else
			receive(worker, 0);
	}
	for (size_t i = 0; i < worker->held_len; i++)
		give_verdict(worker, worker->held[i], NF_ACCEPT, 0, NULL);
	worker->held_len = 0;
}

static void *thread(void *context)
{
	struct worker *worker = context;
	uint64_t share;

	for (;;) {
		pthread_mutex_lock(&lock);
		while (!worker->share)
			pthread_cond_wait(&ordered, &lock);
		share = worker->share;
		pthread_mutex_unlock(&lock);
		work(worker, share);
		pthread_mutex_lock(&lock);
		clock_gettime(CLOCK_MONOTONIC, &worker->end);
		worker->share = 0;
		pthread_cond_signal(&finished);
		pthread_mutex_unlock(&lock);
	}
	return NULL;
}

static struct worker *bind_queue(int number)
{
	struct worker *worker = calloc(1, sizeof *worker);
	int on = 1;

	if (!worker || !(worker->handle = nfq_open()))
		fail("nfq_open");
	worker->fd = nfq_fd(worker->handle);
	if (best && !buffer)
		buffer = 8 << 20;
	if (buffer)
		nfnl_rcvbufsiz(nfq_nfnlh(worker->handle), buffer);
	worker->queue = nfq_create_queue(worker->handle, number, on_packet, worker);
	if (!worker->queue)
		fail("nfq_create_queue");
	if (nfq_set_mode(worker->queue, NFQNL_COPY_PACKET, 0xffff) < 0)
		fail("nfq_set_mode");
	if (nfq_set_queue_maxlen(worker->queue, QUEUE_LEN) < 0)
		fail("nfq_set_queue_maxlen");
	if (best && nfq_set_queue_flags(worker->queue, NFQA_CFG_F_GSO, NFQA_CFG_F_GSO) < 0)
		fail("nfq_set_queue_flags");
	if (best)
		setsockopt(worker->fd, SOL_NETLINK, NETLINK_NO_ENOBUFS, &on, sizeof on);
	return worker;
}

static int64_t between(struct timespec start, struct timespec end)
{
	return (end.tv_sec - start.tv_sec) * 1000000000LL + end.tv_nsec - start.tv_nsec;
}

/* Each worker judges its share of the packets, which the harness spreads evenly. */
static void order(uint64_t packets, int queues)
{
	pthread_mutex_lock(&lock);
	for (int i = 0; i < queues; i++)
		workers[i]->share = packets / queues + ((uint64_t)i < packets % queues);
	pthread_cond_broadcast(&ordered);
	pthread_mutex_unlock(&lock);
}

/* Returns how long the last one took. */
static int64_t wait_for_all(struct timespec start, int queues)
{
	int64_t longest = 0, time;

	pthread_mutex_lock(&lock);
	for (int i = 0; i < queues; i++) {
		while (workers[i]->share)
			pthread_cond_wait(&finished, &lock);
		time = between(start, workers[i]->end);
		longest = time > longest ? time : longest;
	}
	pthread_mutex_unlock(&lock);
	return longest;
}

/* Ends the process when the harness closes its pipe, whatever the other threads are at. */
static void *until_stdin_closes(void *unused)
{
	struct pollfd in = { .fd = STDIN_FILENO };

	(void)unused;
	while (poll(&in, 1, -1) < 0 || !(in.revents & POLLHUP))
		;
	_exit(0);
}

int main(int argc, char **argv)
{
	static const char *const tasks[] = { "drop", "accept", "flip", "recompute", "retain" };
	int first = 0, queues = 1, i, known = 1;
	uint64_t calls = 0, calls_before = 0;
	int64_t time;
	struct timespec start;
	char line[200];
	pthread_t id;

	for (i = 1; i + 1 < argc; i += 2) {
		if (!strcmp(argv[i], "--queue"))
			first = atoi(argv[i + 1]);
		else if (!strcmp(argv[i], "--queues"))
			queues = atoi(argv[i + 1]);
		else if (!strcmp(argv[i], "--buffer"))
			buffer = atol(argv[i + 1]);
		else if (!strcmp(argv[i], "--settings"))
			best = !strcmp(argv[i + 1], "best");
		else if (!strcmp(argv[i], "--task"))
			for (task = 0, known = 0; task <= RETAIN && !known; task += !known)
				known = !strcmp(argv[i + 1], tasks[task]);
	}
	if (!known || queues < 1 || queues > MAX_QUEUES) {
		puts(known ? "unsupported so many queues" :
			     "unsupported the library cannot do this task");
		return 0;
	}
	for (i = 0; i < queues; i++)
		workers[i] = bind_queue(first + i);
	for (i = 0; i < queues; i++)
		pthread_create(&id, NULL, thread, workers[i]);
	pthread_create(&id, NULL, until_stdin_closes, NULL);
	setvbuf(stdout, NULL, _IOLBF, 0);
	puts("ready");
	while (fgets(line, sizeof line, stdin)) {
		clock_gettime(CLOCK_MONOTONIC, &start);
		if (!strncmp(line, "judge ", 6)) {
			order(strtoull(line + 6, NULL, 10), queues);
			time = wait_for_all(start, queues);
			for (calls = 0, i = 0; i < queues; i++)
				calls += workers[i]->calls;
			printf("done %lld calls=%llu\n", (long long)time,
			       (unsigned long long)(calls - calls_before));
			calls_before = calls;
		} else if (!strncmp(line, "serve", 5)) {
			order(UINT64_MAX / 2, queues);
		} else if (!strncmp(line, "rss", 3)) {
			FILE *status = fopen("/proc/self/status", "r");
			char entry[200];
			long kb = 0;

			while (status && fgets(entry, sizeof entry, status))
				if (sscanf(entry, "VmRSS: %ld", &kb) == 1)
					break;
			if (status)
				fclose(status);
			printf("rss %ld\n", kb);
		}
	}
	return 0;
}
