// The proxy of the actionloop shape (contract 5.10, column "actionloop proxy"): PID 1 of its container,
// many threads, an epoll set, and per action one child joined by a pipe to its stdin and a pipe from its
// fd 3, waited for by pidfd. It answers as the stock proxy does, error texts and hangs included.
package main

import (
	"archive/zip"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"openwhisk/openwhisk"
)

const sentinel = "XXX_THE_END_OF_A_WHISK_ACTIVATION_XXX"

// What the stock proxy exports as __OW_PROXY_VERSION.
const version = "1.17.1"

type proxy struct {
	initialized bool
	executor    *executor
	count       int               // of unpacked actions; the directory is ./action/<count>
	env         map[string]string // of the child
}

func newProxy() *proxy {
	env := map[string]string{"__OW_PROXY_VERSION": version}
	if os.Getenv("OW_WAIT_FOR_ACK") != "" {
		env["__OW_WAIT_FOR_ACK"] = os.Getenv("OW_WAIT_FOR_ACK")
	}
	if os.Getenv("OW_EXECUTION_ENV") != "" {
		env["__OW_EXECUTION_ENV"] = os.Getenv("OW_EXECUTION_ENV")
	}
	for _, entry := range os.Environ() {
		if strings.HasPrefix(entry, "__OW_") {
			// Cut at every '=', so a value is lost behind its first one. The stock proxy does so.
			parts := strings.Split(entry, "=")
			env[parts[0]] = parts[1]
		}
	}
	return &proxy{env: env}
}

func (p *proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/init":
		p.init(w, r)
	case "/run":
		p.run(w, r)
	}
}

func sendError(w http.ResponseWriter, code int, text string) {
	body, _ := json.Marshal(struct {
		Error string `json:"error"`
	}{text})
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	w.Write(append(body, '\n'))
}

func sendBody(w http.ResponseWriter, body []byte) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Content-Length", fmt.Sprint(len(body)))
	w.Write(body)
	if f, ok := w.(http.Flusher); ok {
		f.Flush()
	}
}

func writeSentinels() {
	fmt.Fprintln(os.Stdout, sentinel)
	fmt.Fprintln(os.Stderr, sentinel)
}

func (p *proxy) init(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	defer r.Body.Close()
	if err != nil {
		sendError(w, http.StatusBadRequest, fmt.Sprintf("%v", err))
		return
	}
	if p.initialized {
		message := "Cannot initialize the action more than once."
		sendError(w, http.StatusForbidden, message)
		log.Println(message)
		return
	}
	request, err := openwhisk.ParseInit(body)
	if err != nil {
		sendError(w, http.StatusBadRequest, fmt.Sprintf("Error unmarshaling request: %v", err))
		return
	}
	if request.Code == "" {
		sendError(w, http.StatusForbidden, "Missing main/no code to execute.")
		return
	}
	main := request.Main
	if main == "" {
		main = "main"
	}
	for name, value := range request.Env {
		if text, ok := value.(string); ok {
			p.env[name] = text
		} else {
			encoded, _ := json.Marshal(value)
			p.env[name] = string(encoded)
		}
	}
	code := []byte(request.Code)
	if request.Binary {
		if code, err = base64.StdEncoding.DecodeString(request.Code); err != nil {
			sendError(w, http.StatusBadRequest, "cannot decode the request: "+err.Error())
			return
		}
	}
	binary, err := p.prepare(code, main)
	if err != nil {
		fmt.Fprint(os.Stderr, err.Error())
		writeSentinels()
		sendError(w, http.StatusBadGateway, "The action failed to generate or locate a binary. See logs for details.")
		return
	}
	if err := p.start(binary); err != nil {
		fmt.Fprintln(os.Stderr, err.Error())
		writeSentinels()
		sendError(w, http.StatusBadGateway, "Cannot start action. Check logs for details.")
		return
	}
	p.initialized = true
	sendBody(w, []byte("{\"ok\":true}\n"))
}

// prepare unpacks the code below ./action/<n> and compiles it unless it brings its own `exec`.
// An error is what the compiler said.
func (p *proxy) prepare(code []byte, main string) (string, error) {
	p.count++
	root := fmt.Sprintf("./action/%d", p.count)
	source, binary := filepath.Join(root, "src"), filepath.Join(root, "bin")
	os.RemoveAll(root)
	if err := os.MkdirAll(source, 0o755); err != nil {
		return "", err
	}
	if bytes.HasPrefix(code, []byte("PK")) {
		if err := unzip(code, source); err != nil {
			return "", fmt.Errorf("%v\n", err)
		}
		if _, err := os.Stat(filepath.Join(source, "exec")); err == nil {
			if err := os.Rename(source, binary); err != nil {
				return "", err
			}
			return "./" + filepath.Join(binary, "exec"), nil
		}
	} else if err := os.WriteFile(filepath.Join(source, "exec"), code, 0o755); err != nil {
		return "", err
	}
	command := exec.Command(os.Getenv("OW_COMPILER"), main, source, binary)
	command.Env = []string{"PATH=" + os.Getenv("PATH"), "OW_EXECUTION_ENV=" + os.Getenv("OW_EXECUTION_ENV")}
	output, err := command.CombinedOutput()
	file := "./" + filepath.Join(binary, "exec")
	if _, missing := os.Stat(file); err != nil || missing != nil {
		return "", fmt.Errorf("%s", output)
	}
	return file, nil
}

func unzip(archive []byte, target string) error {
	reader, err := zip.NewReader(bytes.NewReader(archive), int64(len(archive)))
	if err != nil {
		return err
	}
	for _, entry := range reader.File {
		if !filepath.IsLocal(entry.Name) {
			return fmt.Errorf("archive entry %q leaves its directory", entry.Name)
		}
		path := filepath.Join(target, entry.Name)
		if entry.FileInfo().IsDir() {
			if err := os.MkdirAll(path, 0o755); err != nil {
				return err
			}
			continue
		}
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		in, err := entry.Open()
		if err != nil {
			return err
		}
		out, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, entry.Mode()|0o600)
		if err == nil {
			_, err = io.Copy(out, in)
			out.Close()
		}
		in.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

func (p *proxy) start(binary string) error {
	// A binary says for which image it was made; only checked where the image has a name.
	if expected := os.Getenv("OW_EXECUTION_ENV"); expected != "" {
		found, err := os.ReadFile(binary + ".env")
		if err != nil {
			return fmt.Errorf("open %s.env: no such file or directory", binary)
		}
		if strings.TrimSpace(string(found)) != expected {
			return fmt.Errorf("Expected exec.env should start with %s", expected)
		}
	}
	executor := newExecutor(binary, p.env)
	if err := executor.start(os.Getenv("OW_WAIT_FOR_ACK") != ""); err != nil {
		return err
	}
	p.executor = executor
	return nil
}

func (p *proxy) run(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	defer r.Body.Close()
	if err != nil {
		sendError(w, http.StatusBadRequest, fmt.Sprintf("Error reading request body: %v", err))
		return
	}
	executor := p.executor
	if executor == nil {
		sendError(w, http.StatusInternalServerError, "no action defined yet")
		return
	}
	// The exit is told once. A second run after a death between runs therefore passes this test and
	// then waits without end, as with the stock proxy: the answer pipe is also open on our side.
	if executor.hasExited() {
		sendError(w, http.StatusInternalServerError, "command exited")
		return
	}
	answer, err := executor.interact(bytes.ReplaceAll(body, []byte("\n"), nil))
	if err != nil {
		p.executor = nil
		sendError(w, http.StatusBadRequest, "command exited")
		return
	}
	var object map[string]*json.RawMessage
	var array []interface{}
	if json.Unmarshal(answer, &object) != nil && json.Unmarshal(answer, &array) != nil {
		sendError(w, http.StatusBadGateway, "The action did not return a dictionary or array.")
		return
	}
	sendBody(w, answer)
}

func main() {
	server := &http.Server{Addr: ":8080", Handler: newProxy()}
	log.Fatal(server.ListenAndServe())
}
