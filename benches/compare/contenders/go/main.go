// go-nfqueue, which is written in Go from the socket up.
//
// default: what its example does: whole packets, a callback, a verdict for each packet. Its example
// also sets NETLINK_NO_ENOBUFS; otherwise a full receive buffer is an error of the callback's loop.
// best: GSO and a receive buffer of 8 MiB. SetVerdictBatch is not used: the callback is not told
// whether more packets wait, so packets would have to wait for a timer.
//
// With several queues each has its own Nfqueue, and so its own socket and goroutines.
//
// Binding and receiving are one step in this library (Register), so each queue may have received
// one packet when it has to stop; its callback then waits with the packet until it may go on.
package main

import (
	"bufio"
	"context"
	"encoding/binary"
	"fmt"
	"math/bits"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/florianl/go-nfqueue/v2"
	"github.com/mdlayher/netlink"
)

const queueLen = 131072

// As the library that is measured has by default.
const receiveBuffer = 8 << 20

func fail(err error) {
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

func unsupported(reason string) {
	fmt.Println("unsupported", reason)
	os.Exit(0)
}

// The sum of 32-bit words, with the carries added, folded later (RFC 1071).
func wideSum(data []byte, sum uint64) uint64 {
	var carry uint64
	for ; len(data) >= 8; data = data[8:] {
		sum, carry = bits.Add64(sum, binary.BigEndian.Uint64(data), 0)
		sum += carry
	}
	var rest [8]byte
	copy(rest[:], data)
	sum, carry = bits.Add64(sum, binary.BigEndian.Uint64(rest[:]), 0)
	return sum + carry
}

// Changes the first byte that TCP or UDP carries and sets the checksum over the whole segment.
func recompute(packet []byte) bool {
	var start int
	var protocol byte
	var addresses []byte
	switch {
	case len(packet) >= 20 && packet[0]>>4 == 4:
		start, protocol, addresses = int(packet[0]&15)*4, packet[9], packet[12:20]
	case len(packet) >= 40 && packet[0]>>4 == 6:
		start, protocol, addresses = 40, packet[6], packet[8:40]
	default:
		return false
	}
	var data, checksum int
	switch {
	case protocol == 6 && len(packet) >= start+20:
		data, checksum = start+int(packet[start+12]>>4)*4, start+16
	case protocol == 17 && len(packet) >= start+8:
		data, checksum = start+8, start+6
	default:
		return false
	}
	if data < len(packet) {
		packet[data] ^= 1
	}
	packet[checksum], packet[checksum+1] = 0, 0
	sum := wideSum(packet[start:], wideSum(addresses, uint64(protocol)+uint64(len(packet)-start)))
	for sum > 0xffff {
		sum = sum&0xffff + sum>>16
	}
	value := ^uint16(sum)
	if value == 0 {
		value = 0xffff // zero says "no checksum" in UDP; both mean the same in TCP
	}
	binary.BigEndian.PutUint16(packet[checksum:], value)
	return true
}

// A queue counts its packets itself: a counter in common would cost each of them a cache line.
type queue struct {
	nf     *nfqueue.Nfqueue
	task   string
	held   []uint32
	judged uint64 // the callback's own
	wanted atomic.Uint64
	lock   sync.Mutex
	more   *sync.Cond
	end    chan time.Time
}

func (q *queue) want(packets uint64) {
	q.lock.Lock()
	q.wanted.Add(packets)
	q.more.Broadcast()
	q.lock.Unlock()
}

func (q *queue) waitUntilWanted() {
	if q.judged < q.wanted.Load() {
		return
	}
	q.lock.Lock()
	for q.judged >= q.wanted.Load() {
		q.more.Wait()
	}
	q.lock.Unlock()
}

func (q *queue) oneMoreJudged() {
	q.judged++
	if q.judged == q.wanted.Load() {
		q.end <- time.Now()
	}
}

func bind(number uint16, task string, best bool, buffer int) *queue {
	config := nfqueue.Config{
		NfQueue:      number,
		MaxPacketLen: 0xffff,
		MaxQueueLen:  queueLen,
		Copymode:     nfqueue.NfQnlCopyPacket,
	}
	if best {
		config.Flags = nfqueue.NfQaCfgFlagGSO
	}
	nf, err := nfqueue.Open(&config)
	if err != nil {
		fail(err)
	}
	if best && buffer == 0 {
		buffer = receiveBuffer
	}
	if buffer > 0 {
		if err := nf.Con.SetReadBuffer(buffer); err != nil {
			fail(err)
		}
	}
	if err := nf.Con.SetOption(netlink.NoENOBUFS, true); err != nil {
		fail(err)
	}
	q := &queue{nf: nf, task: task, end: make(chan time.Time, 1)}
	q.more = sync.NewCond(&q.lock)
	return q
}

func (q *queue) judge(a nfqueue.Attribute) error {
	id := *a.PacketID
	// A cut off packet has CapLen; sent back, the rest would be gone for good.
	if (q.task == "flip" || q.task == "recompute") && a.Payload != nil && a.CapLen == nil {
		packet := *a.Payload
		if q.task == "flip" {
			packet[len(packet)-1] ^= 0xff
		} else {
			recompute(packet)
		}
		return q.nf.SetVerdictModPacket(id, nfqueue.NfAccept, packet)
	}
	if q.task == "drop" {
		return q.nf.SetVerdict(id, nfqueue.NfDrop)
	}
	return q.nf.SetVerdict(id, nfqueue.NfAccept)
}

func (q *queue) register() {
	callback := func(a nfqueue.Attribute) int {
		q.waitUntilWanted()
		if q.task != "retain" {
			if err := q.judge(a); err != nil {
				fail(err)
			}
			q.oneMoreJudged()
			return 0
		}
		q.held = append(q.held, *a.PacketID)
		if q.judged+uint64(len(q.held)) == q.wanted.Load() {
			for _, id := range q.held {
				if err := q.nf.SetVerdict(id, nfqueue.NfAccept); err != nil {
					fail(err)
				}
				q.oneMoreJudged()
			}
			q.held = q.held[:0]
		}
		return 0
	}
	// Among the errors are the answers to verdicts on packets that the kernel dropped by itself.
	ignore := func(error) int { return 0 }
	if err := q.nf.RegisterWithErrorFunc(context.Background(), callback, ignore); err != nil {
		fail(err)
	}
}

func main() {
	options := map[string]string{
		"--queue": "0", "--queues": "1", "--task": "accept", "--settings": "default",
		"--buffer": "0",
	}
	for i := 1; i+1 < len(os.Args); i += 2 {
		options[os.Args[i]] = os.Args[i+1]
	}
	number := func(name string) int {
		value, err := strconv.Atoi(options[name])
		if err != nil {
			fail(err)
		}
		return value
	}
	task := options["--task"]
	switch task {
	case "drop", "accept", "flip", "recompute":
	case "retain":
		if number("--queues") > 1 {
			unsupported("the contender holds packets of one queue only")
		}
	default:
		unsupported("the library cannot do this task")
	}
	var queues []*queue
	for i := 0; i < number("--queues"); i++ {
		best := options["--settings"] == "best"
		q := bind(uint16(number("--queue")+i), task, best, number("--buffer"))
		q.register()
		queues = append(queues, q)
	}
	fmt.Println("ready")
	for line := range orders() {
		start := time.Now()
		command, argument, _ := strings.Cut(line, " ")
		switch command {
		case "judge":
			packets, err := strconv.ParseUint(argument, 10, 64)
			if err != nil {
				fail(err)
			}
			// The harness spreads them evenly.
			shares := uint64(len(queues))
			asked := queues
			if packets < shares {
				asked = queues[:packets]
			}
			for i, q := range asked {
				share := packets / shares
				if uint64(i) < packets%shares {
					share++
				}
				q.want(share)
			}
			end := start
			for _, q := range asked {
				if last := <-q.end; last.After(end) {
					end = last
				}
			}
			fmt.Printf("done %d\n", end.Sub(start).Nanoseconds())
		case "serve":
			for _, q := range queues {
				q.want(1 << 62)
			}
		case "rss":
			status, _ := os.ReadFile("/proc/self/status")
			_, after, _ := strings.Cut(string(status), "VmRSS:")
			fmt.Println("rss", strings.Fields(after)[0])
		}
	}
}

// The lines of stdin. When it is closed the process ends, even while packets are judged.
func orders() <-chan string {
	lines := make(chan string)
	go func() {
		input := bufio.NewScanner(os.Stdin)
		for input.Scan() {
			lines <- input.Text()
		}
		os.Exit(0)
	}()
	return lines
}
