// A Go action as the actionloop proxy starts it: one request per line on standard input, one answer per
// line on file descriptor 3. It leaves goroutines, timers, garbage and a listener behind.
package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

var (
	seen  []int
	ticks atomic.Int64
	kept  [][]byte
)

func work(n int) map[string]any {
	found := append([]int{}, seen...)
	before := runtime.NumGoroutine()
	ticked := ticks.Load()
	seen = append(seen, n)

	// What computes together, and ends.
	var group sync.WaitGroup
	var sum atomic.Int64
	for i := 0; i < 200; i++ {
		group.Add(1)
		go func() {
			defer group.Done()
			sum.Add(int64(i))
		}()
	}
	group.Wait()
	// What stays.
	for i := 0; i < 20; i++ {
		go func() {
			for range time.Tick(time.Millisecond) {
				ticks.Add(1)
			}
		}()
	}
	time.AfterFunc(time.Hour, func() { ticks.Add(1000) })
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return map[string]any{"error": err.Error()}
	}
	go listener.Accept()
	kept = append(kept, make([]byte, 8<<20))
	runtime.GC()
	time.Sleep(3 * time.Millisecond)
	host, _ := os.Hostname()
	return map[string]any{
		"found": found, "goroutines": before, "ticks": ticked, "sum": sum.Load(), "host": host,
	}
}

func main() {
	out := os.NewFile(3, "answers")
	fmt.Fprintln(out, `{"ok":true}`)
	in := bufio.NewReader(os.Stdin)
	for {
		line, err := in.ReadBytes('\n')
		if err != nil {
			return
		}
		var request struct {
			Value struct {
				N int `json:"n"`
			} `json:"value"`
		}
		answer := map[string]any{"error": "the request cannot be read"}
		if json.Unmarshal(line, &request) == nil {
			answer = work(request.Value.N)
		}
		text, _ := json.Marshal(answer)
		fmt.Fprintf(out, "%s\n", text)
	}
}
