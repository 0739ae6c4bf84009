/* libnetfilter_queue, with the functions most of its users call (nfq_open, nfq_handle_packet,
 * nfq_set_verdict).
 *
 * default: the loop of its documentation: whole packets, a verdict per packet, and a buffer that has
 *   room for the largest packet (one of 64 KiB, often seen, has not: what stands before the packet
 *   takes some hundred bytes, and a message that was cut off is never judged).
 * best: what the documentation's section on performance and the header offer beyond that:
 *   GSO (NFQA_CFG_F_GSO), NETLINK_NO_ENOBUFS, and nfq_set_verdict_batch for packets that need nothing but a verdict: all
 *   that wait are received, up to BATCH, and answered by one message. The batch ends as soon as
 *   the queue is empty, so that no packet waits for another.
 *   nfq_set_verdict_batch2 would also set the mark, which nobody asked for.
 * With several queues each has a handle, and so a socket, and a thread of its own. */

#include <arpa/inet.h>
#include <errno.h>
#include <linux/netfilter.h>
#include <linux/netlink.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdatomic.h>
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

struct worker {
	struct nfq_handle *handle;
	struct nfq_q_handle *queue;
	int fd;
	uint64_t calls;
	uint32_t last; /* id of the packet received last, in a batch */
	uint32_t *held;
	size_t held_len, held_room;
	/* Received when enough were judged already: for the next "judge". */
	int early;
	char packet[0xffff + 4096] __attribute__((aligned(8)));
};
static struct worker *workers[MAX_QUEUES];

/* What the threads share. The counts only grow. Two threads may both take what only one of them
 * should if packets go on coming: those too many are counted for the next "judge". */
static _Atomic uint64_t wanted, held, judged;
static struct timespec end;
static _Atomic bool ended;
static pthread_mutex_t sleepers = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t more = PTHREAD_COND_INITIALIZER;

static void fail(const char *what)
{
	perror(what);
	exit(1);
}

static void more_judged(uint64_t packets)
{
	uint64_t before = atomic_fetch_add(&judged, packets);

	if (before < wanted && before + packets >= wanted) {
		clock_gettime(CLOCK_MONOTONIC, &end);
		ended = true;
	}
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
	uint64_t sum = wide_sum(packet + addresses, addresses_len) + wide_sum(packet + start, len - start) +
		       htonl((uint32_t)(protocol + len - start));
	while (sum > 0xffff)
		sum = (sum & 0xffff) + (sum >> 16);
	value = ~(uint16_t)sum;
	if (value == 0)
		value = 0xffff; /* zero says "no checksum" in UDP; both mean the same in TCP */
	memcpy(packet + checksum, &value, 2);
	return true;
}

static int on_packet(struct nfq_q_handle *queue, struct nfgenmsg *message, struct nfq_data *data, void *context)
{
	struct worker *worker = context;
	uint32_t id = ntohl(nfq_get_msg_packet_hdr(data)->packet_id);
	unsigned char *packet;
	int len;

	(void)message;
	worker->last = id;
	if (task == RETAIN) {
		if (worker->held_len == worker->held_room) {
			worker->held_room = worker->held_room ? worker->held_room * 2 : 4096;
			worker->held = realloc(worker->held, worker->held_room * sizeof *worker->held);
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
			worker->calls++;
			return nfq_set_verdict(queue, id, NF_ACCEPT, len, packet);
		}
	} else if (best) {
		return 0; /* the batch's verdict is for this one too */
	}
	worker->calls++;
	return nfq_set_verdict(queue, id, task == DROP ? NF_DROP : NF_ACCEPT, 0, NULL);
}

/* Receives a packet. 0: none came. The time limit lets a thread whose queue has run empty see that
 * another one judged the last packet. */
static int receive(struct worker *worker, int flags)
{
	int len;

	if (worker->early) {
		len = worker->early;
		worker->early = 0;
		return len;
	}
	worker->calls++;
	len = recv(worker->fd, worker->packet, sizeof worker->packet, flags);
	if (len < 0 && errno != EAGAIN && errno != EINTR && errno != ENOBUFS)
		fail("recv");
	return len < 0 ? 0 : len;
}

static void work(struct worker *worker)
{
	bool batches = best && (task == DROP || task == ACCEPT);
	uint64_t left, packets;
	int len;

	while ((left = wanted - judged) > 0 && judged < wanted) {
		if (task == RETAIN && held >= wanted) {
			for (size_t i = 0; i < worker->held_len; i++) {
				worker->calls++;
				nfq_set_verdict(worker->queue, worker->held[i], NF_ACCEPT, 0, NULL);
				more_judged(1);
			}
			worker->held_len = 0;
			usleep(judged < wanted ? 10 : 0);
			continue;
		}
		len = receive(worker, 0);
		if (!len)
			continue;
		if (judged >= wanted) {
			worker->early = len;
			break;
		}
		nfq_handle_packet(worker->handle, worker->packet, len);
		if (task == RETAIN) {
			held++;
		} else if (batches) {
			for (packets = 1; packets < BATCH && packets < left; packets++) {
				len = receive(worker, MSG_DONTWAIT);
				if (!len)
					break;
				nfq_handle_packet(worker->handle, worker->packet, len);
			}
			worker->calls++;
			nfq_set_verdict_batch(worker->queue, worker->last, task == DROP ? NF_DROP : NF_ACCEPT);
			more_judged(packets);
		} else {
			more_judged(1);
		}
	}
}

static void *thread(void *worker)
{
	for (;;) {
		pthread_mutex_lock(&sleepers);
		while (judged >= wanted)
			pthread_cond_wait(&more, &sleepers);
		pthread_mutex_unlock(&sleepers);
		work(worker);
	}
	return NULL;
}

static struct worker *bind_queue(int number)
{
	struct worker *worker = calloc(1, sizeof *worker);
	struct timeval limit = { .tv_usec = 50000 };
	int on = 1;

	if (!worker || !(worker->handle = nfq_open()))
		fail("nfq_open");
	worker->fd = nfq_fd(worker->handle);
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
	setsockopt(worker->fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
	return worker;
}

static void want(uint64_t packets)
{
	pthread_mutex_lock(&sleepers);
	wanted += packets;
	ended = false;
	pthread_cond_broadcast(&more);
	pthread_mutex_unlock(&sleepers);
}

static void *until_stdin_closes(void *unused)
{
	(void)unused;
	while (getchar() != EOF)
		;
	_exit(0);
}

int main(int argc, char **argv)
{
	static const char *const tasks[] = { "drop", "accept", "flip", "recompute", "retain" };
	int first = 0, queues = 1, i, known = 1;
	uint64_t calls = 0, calls_before = 0;
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
		puts(known ? "unsupported so many queues" : "unsupported the library cannot do this task");
		return 0;
	}
	for (i = 0; i < queues; i++)
		workers[i] = bind_queue(first + i);
	for (i = 1; i < queues; i++)
		pthread_create(&id, NULL, thread, workers[i]);
	setvbuf(stdout, NULL, _IOLBF, 0);
	puts("ready");
	while (fgets(line, sizeof line, stdin)) {
		clock_gettime(CLOCK_MONOTONIC, &start);
		if (!strncmp(line, "judge ", 6)) {
			want(strtoull(line + 6, NULL, 10));
			work(workers[0]);
			while (!ended) /* another thread is between its last verdict and its clock */
				;
			if (queues > 1)
				usleep(120000); /* those that wait in recv come back and are counted */
			for (calls = 0, i = 0; i < queues; i++)
				calls += workers[i]->calls;
			printf("done %lld calls=%llu\n",
			       (end.tv_sec - start.tv_sec) * 1000000000LL + end.tv_nsec - start.tv_nsec,
			       (unsigned long long)(calls - calls_before));
			calls_before = calls;
		} else if (!strncmp(line, "serve", 5)) {
			pthread_create(&id, NULL, until_stdin_closes, NULL);
			want(UINT64_MAX / 2);
			work(workers[0]);
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
