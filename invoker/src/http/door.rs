//! Connections: accepted, wrapped in TLS if wanted, bounded in number and in silence.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::serve::Listener;
use openssl::error::ErrorStack;
use openssl::pkcs12::Pkcs12;
use openssl::ssl::{Ssl, SslAcceptor, SslMethod, SslVerifyMode};
use openssl::x509::store::X509StoreBuilder;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::{Instant, Sleep};
use tokio_openssl::SslStream;

/// Connections at a time. Deployment probes and scrapers need a handful.
const CONNECTIONS_MAX: usize = 256;

/// A TLS handshake that takes longer is given up.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);

/// A connection that says nothing for so long is closed; longer than the usual scrape interval.
const SILENCE_MAX: Duration = Duration::from_secs(150);

/// How the port speaks TLS: `invoker.https.*`.
#[derive(Clone)]
pub struct HttpsSettings {
    /// A PKCS12 file with key and certificate.
    pub keystore_path: PathBuf,
    /// Its password.
    pub keystore_password: String,
    /// Whether callers must show a certificate that the keystore's own certificates vouch for.
    pub client_auth: bool,
}

/// Why TLS cannot be set up.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// The file cannot be read.
    #[error("keystore {path} cannot be read")]
    Read {
        /// As configured.
        path: PathBuf,
        /// What the system says.
        #[source]
        source: io::Error,
    },
    /// Not PKCS12, a wrong password, or encrypted in a way that OpenSSL 3 no longer reads (RC2-40).
    #[error(
        "keystore {path} cannot be opened as PKCS12 with the given password (if it is very old, write it anew: \
         openssl pkcs12 -legacy -in OLD -nodes | openssl pkcs12 -export -out NEW)"
    )]
    Open {
        /// As configured.
        path: PathBuf,
        /// What OpenSSL says.
        #[source]
        source: ErrorStack,
    },
    /// No key or no certificate in it.
    #[error("keystore {path} holds no {what}")]
    Lacks {
        /// As configured.
        path: PathBuf,
        /// `private key` or `certificate`.
        what: &'static str,
    },
    /// OpenSSL refuses key or certificate.
    #[error("the certificate of keystore {path} cannot be used")]
    Use {
        /// As configured.
        path: PathBuf,
        /// What OpenSSL says.
        #[source]
        source: ErrorStack,
    },
}

/// What accepts TLS with the keystore's key and certificates.
pub(super) fn acceptor(settings: &HttpsSettings) -> Result<SslAcceptor, TlsError> {
    let path = &settings.keystore_path;
    let der = std::fs::read(path).map_err(|source| TlsError::Read { path: path.clone(), source })?;
    let keystore = Pkcs12::from_der(&der)
        .and_then(|keystore| keystore.parse2(&settings.keystore_password))
        .map_err(|source| TlsError::Open { path: path.clone(), source })?;
    let lacks = |what| TlsError::Lacks { path: path.clone(), what };
    let key = keystore.pkey.ok_or_else(|| lacks("private key"))?;
    let certificate = keystore.cert.ok_or_else(|| lacks("certificate"))?;
    build(&key, &certificate, keystore.ca.as_ref(), settings.client_auth)
        .map_err(|source| TlsError::Use { path: Path::to_owned(path), source })
}

fn build(
    key: &openssl::pkey::PKeyRef<openssl::pkey::Private>,
    certificate: &openssl::x509::X509Ref,
    chain: Option<&openssl::stack::Stack<openssl::x509::X509>>,
    client_auth: bool,
) -> Result<SslAcceptor, ErrorStack> {
    let mut acceptor = SslAcceptor::mozilla_intermediate_v5(SslMethod::tls_server())?;
    acceptor.set_private_key(key)?;
    acceptor.set_certificate(certificate)?;
    acceptor.check_private_key()?;
    for certificate in chain.into_iter().flatten() {
        acceptor.add_extra_chain_cert(certificate.to_owned())?;
    }
    if client_auth {
        // As the JVM invoker: the keystore is the trust store, too.
        let mut trusted = X509StoreBuilder::new()?;
        trusted.add_cert(certificate.to_owned())?;
        for certificate in chain.into_iter().flatten() {
            trusted.add_cert(certificate.to_owned())?;
        }
        acceptor.set_verify_cert_store(trusted.build())?;
        acceptor.set_verify(SslVerifyMode::PEER | SslVerifyMode::FAIL_IF_NO_PEER_CERT);
    }
    Ok(acceptor.build())
}

/// Either kind of stream.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// One connection, which counts until it is dropped.
pub(super) struct Connection {
    stream: Box<dyn Stream>,
    silence: Pin<Box<Sleep>>,
    _place: OwnedSemaphorePermit,
}

/// Hands connections to the server. A slow handshake delays nobody else.
pub(super) struct Door {
    ready: mpsc::Receiver<(Connection, SocketAddr)>,
    address: SocketAddr,
}

impl Door {
    /// Starts accepting on the current Tokio runtime; ends when the door is dropped.
    pub(super) fn new(listener: TcpListener, address: SocketAddr, tls: Option<SslAcceptor>) -> Self {
        let (sender, ready) = mpsc::channel(1);
        tokio::spawn(accept(listener, tls.map(Arc::new), sender));
        Self { ready, address }
    }
}

async fn accept(
    mut listener: TcpListener,
    tls: Option<Arc<SslAcceptor>>,
    ready: mpsc::Sender<(Connection, SocketAddr)>,
) {
    let places = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        // The trait's accept, which logs and waits when the system is out of descriptors.
        let (tcp, peer) = tokio::select! {
            accepted = Listener::accept(&mut listener) => accepted,
            () = ready.closed() => return,
        };
        let (tls, ready) = (tls.clone(), ready.clone());
        tokio::spawn(async move {
            let stream: Box<dyn Stream> = match tls {
                None => Box::new(tcp),
                Some(tls) => match tokio::time::timeout(HANDSHAKE_WITHIN, handshake(&tls, tcp)).await {
                    Ok(Ok(stream)) => Box::new(stream),
                    Ok(Err(error)) => {
                        tracing::debug!(%peer, %error, "TLS handshake failed");
                        return;
                    }
                    Err(_) => {
                        tracing::debug!(%peer, "TLS handshake took too long");
                        return;
                    }
                },
            };
            let silence = Box::pin(tokio::time::sleep(SILENCE_MAX));
            let _closed = ready.send((Connection { stream, silence, _place: place }, peer)).await;
        });
    }
}

async fn handshake(tls: &SslAcceptor, tcp: TcpStream) -> Result<SslStream<TcpStream>, openssl::ssl::Error> {
    let mut stream = SslStream::new(Ssl::new(tls.context())?, tcp)?;
    Pin::new(&mut stream).accept().await?;
    Ok(stream)
}

impl Listener for Door {
    type Io = Connection;
    type Addr = SocketAddr;

    async fn accept(&mut self) -> (Connection, SocketAddr) {
        match self.ready.recv().await {
            Some(connection) => connection,
            // The accepting task ends only with this door.
            None => std::future::pending().await,
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        Ok(self.address)
    }
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if let Poll::Ready(outcome) = Pin::new(&mut self.stream).poll_read(cx, buffer) {
            self.silence.as_mut().reset(Instant::now() + SILENCE_MAX);
            return Poll::Ready(outcome);
        }
        ready!(self.silence.as_mut().poll(cx));
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, "connection was silent for too long")))
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}
