//! One HTTP exchange with a container's runtime (contract 5.1, 5.4, 5.5).
//!
//! A fresh connection per request, one request, one answer with a `Content-Length`, and the connection is closed:
//! pause, resume and rewind would break one that is kept.
//!
//! Written over a plain socket with `httparse`, since there is nothing to pool, to follow or to decode, and since the
//! contract's rules (what has no length is no answer, what is too long is cut, what was not sent may go elsewhere)
//! are about what a client usually hides. Measured over loopback, processor time per exchange: this 47 to 63 us,
//! hyper's bare connection 51 to 58, reqwest 63 to 94; most of it is the kernel's connect and close.
//!
//! ```text
//!   connect --refused--> /init: again after 2, 4, .. 50 ms    /run: not sent
//!      |
//!   first process alive? --no--> not sent: whoever accepted was somebody else
//!      |
//!   write, read head, read body --> answer --> wait for the runtime to close its end
//! ```

use super::liveness::Liveness;
use openwhisk_compat::response::ContainerReply;
use std::io::{self, IoSlice};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::Instant;

/// The first and the longest pause between two attempts to connect for `/init`. Upstream always waits 50 ms;
/// a runtime that needs 30 to listen is found 20 sooner by starting small.
const RETRY_FIRST: Duration = Duration::from_millis(2);
const RETRY_MAX: Duration = Duration::from_millis(50);

/// What the head of an answer may take. Runtimes send some 200 bytes.
const HEAD_BYTES_MAX: usize = 64 * 1024;
const HEADERS_MAX: usize = 128;

/// How long a runtime may take to close its end of the connection after its answer before we close ours
/// regardless. It is off the user's latency path.
const CLOSE_GRACE: Duration = Duration::from_millis(50);

/// How long what a dead container sent may still take to arrive.
const DEATH_GRACE: Duration = Duration::from_millis(100);

/// One request.
#[derive(Debug, Clone, Copy)]
pub(super) struct Call<'a> {
    pub(super) address: SocketAddr,
    /// `/init` or `/run`.
    pub(super) path: &'static str,
    /// JSON.
    pub(super) body: &'a [u8],
    /// For everything from the first attempt to connect to the last byte of the answer.
    pub(super) timeout: Duration,
    /// The longest answer that is taken whole, in bytes.
    pub(super) answer_bytes_max: u64,
    /// How much is read of a longer one.
    pub(super) truncated_bytes: u64,
    /// Whether to try again while nobody listens yet.
    pub(super) until_listening: bool,
}

/// How it ended.
#[derive(Debug)]
pub(super) enum Outcome {
    /// As the contract sees it.
    Reply(ContainerReply),
    /// Not a byte of the request was sent, for this reason.
    NotSent(io::Error),
}

/// One exchange.
#[derive(Debug)]
pub(super) struct Exchanged {
    pub(super) outcome: Outcome,
    /// To wait for, if there was an answer.
    pub(super) closing: Option<Closing>,
    /// Further attempts to connect.
    pub(super) retries: u32,
}

/// A connection whose answer has come and which the runtime is about to close.
#[derive(Debug)]
pub(super) struct Closing(TcpStream);

impl Closing {
    /// Waits for the runtime to close its end, not for ever, and closes ours. A rewind must not find the
    /// connection in the container.
    pub(super) async fn closed(mut self) {
        let mut rest = [0_u8; 512];
        let eof = async {
            // What a runtime sends after its answer is nobody's.
            while !matches!(self.0.read(&mut rest).await, Ok(0) | Err(_)) {}
        };
        let _ = tokio::time::timeout(CLOSE_GRACE, eof).await;
    }
}

/// Sends one request and reads its answer.
pub(super) async fn exchange(call: &Call<'_>, liveness: &Liveness) -> Exchanged {
    let mut retries = 0;
    let (outcome, closing) = try_exchange(call, liveness, &mut retries).await;
    Exchanged { outcome, closing, retries }
}

async fn try_exchange(call: &Call<'_>, liveness: &Liveness, retries: &mut u32) -> (Outcome, Option<Closing>) {
    let deadline = Instant::now() + call.timeout;
    let timed_out = || (Outcome::Reply(ContainerReply::TimedOut), None);
    let mut stream = match tokio::time::timeout_at(deadline, connect(call, liveness, retries)).await {
        Err(_) => return timed_out(),
        Ok(Err(error)) => return (Outcome::NotSent(error), None),
        Ok(Ok(stream)) => stream,
    };
    // The engine gives an address away only after its container's first process has ended, so a live process
    // now means that it was this container that accepted.
    if !liveness.is_alive() {
        return (Outcome::NotSent(gone()), None);
    }
    let answered = tokio::time::timeout_at(deadline, async {
        let talk = talk(&mut stream, call);
        tokio::pin!(talk);
        tokio::select! {
            biased;
            answer = &mut talk => answer,
            () = liveness.died() => match tokio::time::timeout(DEATH_GRACE, talk).await {
                Ok(answer) => answer,
                Err(_) => Err(gone()),
            },
        }
    })
    .await;
    match answered {
        Err(_) => timed_out(),
        // A good answer that came too late does not count (contract 5.4).
        Ok(Ok(_)) if Instant::now() >= deadline => timed_out(),
        Ok(Ok(reply)) => (Outcome::Reply(reply), Some(Closing(stream))),
        Ok(Err(error)) => {
            tracing::debug!(path = call.path, %error, "no answer from a container");
            (Outcome::Reply(ContainerReply::NoResponse), None)
        }
    }
}

fn gone() -> io::Error {
    io::Error::new(io::ErrorKind::NotConnected, "the container's first process has ended")
}

async fn connect(call: &Call<'_>, liveness: &Liveness, retries: &mut u32) -> io::Result<TcpStream> {
    let mut pause = RETRY_FIRST;
    loop {
        let attempt = tokio::select! {
            biased;
            attempt = TcpStream::connect(call.address) => attempt,
            // An address nobody has answers 'no route' only after 3 s.
            () = liveness.died() => Err(gone()),
        };
        match attempt {
            Err(error) if call.until_listening && is_not_listening(&error) => {
                tokio::select! {
                    () = tokio::time::sleep(pause) => {}
                    () = liveness.died() => return Err(gone()),
                }
                pause = (pause * 2).min(RETRY_MAX);
                *retries += 1;
            }
            done => return done,
        }
    }
}

fn is_not_listening(error: &io::Error) -> bool {
    use io::ErrorKind::{ConnectionRefused, HostUnreachable, NetworkUnreachable};
    matches!(error.kind(), ConnectionRefused | HostUnreachable | NetworkUnreachable)
}

/// Writes the request and reads the answer, both at once: a runtime may answer without having read everything.
async fn talk(stream: &mut TcpStream, call: &Call<'_>) -> io::Result<ContainerReply> {
    // No `Accept-Encoding`: an encoded answer would have no length. `close`, where upstream's client says
    // `Keep-Alive` and closes all the same: the end that closes first keeps the port for a minute, and with
    // thousands of requests to one container we would run out of ports.
    let head = format!(
        "POST {} HTTP/1.1\r\nHost: {}\r\nAccept: application/json\r\nContent-Type: application/json\r\n\
         Content-Length: {}\r\nConnection: close\r\nUser-Agent: rewind\r\n\r\n",
        call.path,
        call.address,
        call.body.len()
    );
    let (mut reader, mut writer) = stream.split();
    let write = write_request(&mut writer, head.as_bytes(), call.body);
    let read = read_answer(&mut reader, call);
    tokio::pin!(write, read);
    let mut writing = true;
    loop {
        tokio::select! {
            biased;
            // A failed write is not the end: the answer may be there already.
            _ = &mut write, if writing => writing = false,
            answer = &mut read => return answer,
        }
    }
}

async fn write_request(to: &mut (impl AsyncWrite + Unpin), head: &[u8], body: &[u8]) -> io::Result<()> {
    let (mut head, mut body) = (head, body);
    while !head.is_empty() {
        let written = to.write_vectored(&[IoSlice::new(head), IoSlice::new(body)]).await?;
        if written == 0 {
            return Err(io::ErrorKind::WriteZero.into());
        }
        let of_head = written.min(head.len());
        head = &head[of_head..];
        body = &body[written - of_head..];
    }
    to.write_all(body).await
}

async fn read_answer(from: &mut (impl AsyncRead + Unpin), call: &Call<'_>) -> io::Result<ContainerReply> {
    let mut bytes = Vec::with_capacity(4096);
    let head = loop {
        if let Some(head) = parse_head(&bytes)? {
            bytes.drain(..head.length);
            // 100 to 199 announce another head.
            if (100..200).contains(&head.status) {
                continue;
            }
            break head;
        }
        if bytes.len() >= HEAD_BYTES_MAX {
            return Err(broken("the head of the answer is too long"));
        }
        if from.read_buf(&mut bytes).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    };
    // An answer without a length counts as none, chunked ones too.
    let announced = head.content_length.ok_or_else(|| broken("an answer without a Content-Length"))?;
    let truncated = announced > call.answer_bytes_max;
    let wanted = if truncated { announced.min(call.truncated_bytes) } else { announced };
    let wanted = usize::try_from(wanted).map_err(|_| broken("an answer longer than memory"))?;
    bytes.truncate(wanted);
    while bytes.len() < wanted {
        let missing = (wanted - bytes.len()) as u64;
        // Grows with what arrives, not with what is announced.
        if from.take(missing).read_buf(&mut bytes).await? == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
    }
    Ok(match truncated {
        true => ContainerReply::Answer { status: head.status, body: bytes, truncated: Some(announced) },
        false => ContainerReply::answer(head.status, bytes),
    })
}

struct Head {
    status: u16,
    /// Bytes of the head itself, the empty line included.
    length: usize,
    content_length: Option<u64>,
}

/// The head at the start of `bytes`, once it is all there.
fn parse_head(bytes: &[u8]) -> io::Result<Option<Head>> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut response = httparse::Response::new(&mut headers);
    let length = match response.parse(bytes) {
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(error) => return Err(broken(error)),
    };
    let status = response.code.ok_or_else(|| broken("an answer without a status"))?;
    let mut content_length = None;
    for header in response.headers.iter() {
        if header.name.eq_ignore_ascii_case("transfer-encoding") {
            return Err(broken("an answer in transfer encoding"));
        }
        if header.name.eq_ignore_ascii_case("content-length") {
            let value = parse_length(header.value).ok_or_else(|| broken("an unreadable Content-Length"))?;
            if content_length.replace(value).is_some_and(|other| other != value) {
                return Err(broken("two values of Content-Length"));
            }
        }
    }
    Ok(Some(Head { status, length, content_length }))
}

/// Digits only: `str::parse` would take a sign.
fn parse_length(value: &[u8]) -> Option<u64> {
    let text = std::str::from_utf8(value).ok()?.trim();
    text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

fn broken(what: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::unistd::Pid;
    use proptest::prelude::*;
    use tokio::net::TcpListener;

    fn call(address: SocketAddr, body: &[u8]) -> Call<'_> {
        Call {
            address,
            path: "/run",
            body,
            timeout: Duration::from_secs(30),
            answer_bytes_max: 1 << 20,
            truncated_bytes: 10,
            until_listening: false,
        }
    }

    fn ourselves() -> Liveness {
        Liveness::of(Pid::this()).expect("our own pidfd")
    }

    /// Reads from what a peer would send, in pieces of `piece` bytes.
    async fn read(sent: &[u8], piece: usize) -> io::Result<ContainerReply> {
        let (mut far, mut near) = tokio::io::duplex(piece);
        let sent = sent.to_vec();
        let writer = tokio::spawn(async move {
            let _ = far.write_all(&sent).await;
        });
        let address = ([127, 0, 0, 1], 8080).into();
        let reply = read_answer(&mut near, &call(address, b"")).await;
        drop(near);
        writer.await.expect("writer");
        reply
    }

    #[tokio::test]
    async fn the_request_is_the_contracts() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("address");
        let server = tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.expect("accept");
            let mut got = vec![0_u8; 4096];
            let mut have = 0;
            while !got[..have].ends_with(b"{\"value\":{}}") {
                have += stream.read(&mut got[have..]).await.expect("read");
            }
            stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}").await.expect("write");
            drop(stream);
            String::from_utf8(got[..have].to_vec()).expect("text")
        });
        let Exchanged { outcome, closing, retries } =
            exchange(&call(address, b"{\"value\":{}}"), &ourselves()).await;
        assert_eq!(retries, 0);
        let Outcome::Reply(reply) = outcome else { panic!("not sent: {outcome:?}") };
        assert_eq!(reply, ContainerReply::Answer { status: 200, body: b"{}".to_vec(), truncated: None });
        closing.expect("a connection to close").closed().await;
        let request = server.await.expect("server");
        assert!(request.starts_with("POST /run HTTP/1.1\r\n"), "{request}");
        for header in [
            "Content-Type: application/json",
            "Accept: application/json",
            "Content-Length: 12",
            &format!("Host: {address}"),
        ] {
            assert!(request.contains(&format!("\r\n{header}\r\n")), "{header} in {request}");
        }
    }

    #[tokio::test]
    async fn a_dead_containers_address_is_not_talked_to() {
        // The heir of the address listens already.
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("address");
        let outcome = exchange(&call(address, b"secret"), &Liveness::ended()).await.outcome;
        assert!(matches!(outcome, Outcome::NotSent(_)), "{outcome:?}");
        // It may have been connected to, but it was told nothing.
        if let Ok(Ok((mut stream, _))) =
            tokio::time::timeout(Duration::from_millis(50), listener.accept()).await
        {
            let mut heard = Vec::new();
            stream.read_to_end(&mut heard).await.expect("closed");
            assert_eq!(heard, b"");
        }
    }

    #[tokio::test]
    async fn nobody_there_is_not_sent() {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("bind");
        let address = listener.local_addr().expect("address");
        drop(listener);
        let outcome = exchange(&call(address, b""), &ourselves()).await.outcome;
        let Outcome::NotSent(error) = outcome else { panic!("sent: {outcome:?}") };
        assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused);
    }

    #[tokio::test]
    async fn heads_in_pieces() {
        let sent = b"HTTP/1.1 102 Wait\r\n\r\nHTTP/1.1 502 Bad\r\ncontent-length:  3 \r\nX: y\r\n\r\nabcd";
        for piece in [1, 2, 7, 4096] {
            let reply = read(sent, piece).await.expect("answer");
            assert_eq!(reply, ContainerReply::Answer { status: 502, body: b"abc".to_vec(), truncated: None });
        }
    }

    #[tokio::test]
    async fn an_announcement_reserves_no_memory() {
        let sent = b"HTTP/1.1 200 OK\r\nContent-Length: 18446744073709551615\r\n\r\n0123456789abc";
        let reply = read(sent, 64).await.expect("answer");
        let truncated = Some(u64::MAX);
        assert_eq!(reply, ContainerReply::Answer { status: 200, body: b"0123456789".to_vec(), truncated });
    }

    #[tokio::test]
    async fn lengths_that_are_none() {
        for value in ["", "-1", "+2", "2, 2", "0x2", "18446744073709551616", "2 2"] {
            let sent = format!("HTTP/1.1 200 OK\r\nContent-Length: {value}\r\n\r\n{{}}");
            assert!(read(sent.as_bytes(), 64).await.is_err(), "{value}");
        }
        let both = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n{}";
        assert!(read(both, 64).await.is_err());
        let same_twice = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\n{}";
        assert!(read(same_twice, 64).await.is_ok());
    }

    proptest! {
        #[test]
        fn no_bytes_break_the_reader(sent in proptest::collection::vec(any::<u8>(), 0..300)) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().expect("runtime");
            let with_head = [b"HTTP/1.1 200 OK\r\n".as_slice(), &sent].concat();
            for bytes in [sent, with_head] {
                let _ = runtime.block_on(read(&bytes, 4096));
            }
        }

        #[test]
        fn a_body_comes_back_as_it_was(body in proptest::collection::vec(any::<u8>(), 0..5000), piece in 1_usize..600) {
            let runtime = tokio::runtime::Builder::new_current_thread().build().expect("runtime");
            let head = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n", body.len());
            let sent = [head.as_bytes(), &body].concat();
            let reply = runtime.block_on(read(&sent, piece)).expect("answer");
            prop_assert_eq!(reply, ContainerReply::Answer { status: 200, body, truncated: None });
        }
    }
}
