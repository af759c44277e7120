package main

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"os"
	"os/exec"
	"sort"
)

// An executor is one action's child process.
type executor struct {
	command *exec.Cmd
	input   io.WriteCloser
	output  *bufio.Reader
	exited  chan bool // one message, for whoever reads it first
	// Our end of the answer pipe outlives the child, so a reader never sees its end.
	writer *os.File
}

func newExecutor(binary string, env map[string]string) *executor {
	command := exec.Command(binary)
	command.Stdout = os.Stdout
	command.Stderr = os.Stderr
	command.Env = []string{}
	for name, value := range env {
		command.Env = append(command.Env, name+"="+value)
	}
	sort.Strings(command.Env)
	return &executor{command: command, exited: make(chan bool, 1)}
}

// start runs the child; with ack it must say {"ok":true} first.
func (e *executor) start(ack bool) error {
	input, err := e.command.StdinPipe()
	if err != nil {
		return err
	}
	reader, writer, err := os.Pipe()
	if err != nil {
		return err
	}
	e.command.ExtraFiles = []*os.File{writer}
	e.input = input
	e.writer = writer
	e.output = bufio.NewReader(reader)
	if err := e.command.Start(); err != nil {
		return errors.New("command exited")
	}
	go func() {
		_ = e.command.Wait()
		e.exited <- true
	}()
	if !ack {
		return nil
	}
	line, err := e.answer()
	if err != nil {
		return errors.New("Command exited abruptly during initialization.")
	}
	if string(bytes.TrimSpace(line)) != `{"ok": true}` && string(bytes.TrimSpace(line)) != `{"ok":true}` {
		return errors.New("The action did not acknowledge its start: " + string(bytes.TrimSpace(line)))
	}
	return nil
}

// answer is the next line from fd 3, or an error if the child ends first.
func (e *executor) answer() ([]byte, error) {
	lines := make(chan []byte)
	go func() {
		line, err := e.output.ReadBytes('\n')
		if err == nil {
			lines <- line
		} else {
			lines <- []byte{}
		}
	}()
	select {
	case line := <-lines:
		return line, nil
	case <-e.exited:
		return nil, errors.New("command exited")
	}
}

// interact sends one request and waits for its answer. Whatever comes, the log is ended.
func (e *executor) interact(request []byte) ([]byte, error) {
	_, _ = e.input.Write(append(request, '\n'))
	answer, err := e.answer()
	writeSentinels()
	return answer, err
}

func (e *executor) hasExited() bool {
	select {
	case <-e.exited:
		return true
	default:
		return false
	}
}
