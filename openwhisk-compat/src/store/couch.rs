//! CouchDB over HTTP (contract 4.1): one database, the five requests an invoker makes.
//!
//! Nothing here knows actions or activations; documents are bytes.
//! Every answer is read up to a bound, every request has a deadline.

use std::fmt;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use reqwest::header::{ACCEPT, CONTENT_TYPE, IF_MATCH};
use reqwest::{Client, Method, RequestBuilder, Response, StatusCode, Url};
use serde::Deserialize;

/// What a path segment may hold as it is: the unreserved characters of RFC 3986. `/` becomes `%2F`, so that
/// `guest/hello` is one segment.
const SEGMENT: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'.').remove(b'_').remove(b'~');

/// Largest document or attachment that is read: an action of upstream's `exec-size-limit` (48 MB) as base-64,
/// with room for parameters and annotations.
const ANSWER_BYTES_MAX: usize = 80 << 20;

/// How much of an error answer goes into a message.
const ERROR_CHARS_MAX: usize = 300;

/// Connections kept per host, as upstream's pool.
const CONNECTIONS_MAX: usize = 128;

/// Until a connection stands.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);

/// Until a whole answer is read; attachments of tens of megabytes included.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);

/// Where the store is and who asks.
#[derive(Clone)]
pub struct CouchSettings {
    /// `http` or `https`.
    pub protocol: String,
    /// Host name or address.
    pub host: String,
    /// TCP port.
    pub port: u16,
    /// Basic authentication.
    pub username: String,
    /// Basic authentication.
    pub password: String,
}

impl fmt::Debug for CouchSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // The password stays out of logs.
        write!(f, "{}://{}@{}:{}", self.protocol, self.username, self.host, self.port)
    }
}

/// The store cannot be addressed as configured.
#[derive(Debug, thiserror::Error)]
pub enum CouchSetupError {
    /// Protocol, host and port do not make a URL.
    #[error("{settings:?} is not a CouchDB address")]
    Address {
        /// What was configured.
        settings: CouchSettings,
    },
    /// The HTTP client could not be made (TLS set-up).
    #[error("the HTTP client could not be made")]
    Client(#[source] reqwest::Error),
}

/// A request to the store that did not give what was asked.
#[derive(Debug, thiserror::Error)]
pub enum CouchError {
    /// 404.
    #[error("{what} does not exist")]
    NotFound {
        /// Document, attachment or view.
        what: String,
    },
    /// Any other status outside 2xx.
    #[error("the store answered {status} to {what}: {body}")]
    Refused {
        /// Method and path.
        what: String,
        /// HTTP status.
        status: u16,
        /// The beginning of the answer.
        body: String,
    },
    /// No whole answer came.
    #[error("the store did not answer {what}")]
    Transport {
        /// Method and path.
        what: String,
        /// What reqwest says.
        #[source]
        source: reqwest::Error,
    },
    /// The answer is larger than anything a store of ours would hold.
    #[error("the answer to {what} is longer than {ANSWER_BYTES_MAX} bytes")]
    TooLarge {
        /// Method and path.
        what: String,
    },
    /// The answer is not what CouchDB sends.
    #[error("the answer to {what} cannot be read")]
    Malformed {
        /// Method and path.
        what: String,
        /// Where reading stopped.
        #[source]
        source: serde_json::Error,
    },
    /// `.` and `..` are no names: they would address another resource.
    #[error("'{name}' is not a name")]
    Name {
        /// The offending segment.
        name: String,
    },
}

impl CouchError {
    /// Whether the same request may do better in a moment: no answer, or an answer of 5xx or 429.
    #[must_use]
    pub fn passing(&self) -> bool {
        match self {
            Self::Transport { source, .. } => !source.is_builder(),
            Self::Refused { status, .. } => *status >= 500 || *status == 429,
            Self::NotFound { .. } | Self::TooLarge { .. } | Self::Malformed { .. } | Self::Name { .. } => {
                false
            }
        }
    }
}

/// One row of a view, without the document.
#[derive(Debug, Clone, Deserialize)]
pub struct ViewRow {
    /// The emitted key.
    #[serde(default)]
    pub key: serde_json::Value,
    /// The emitted value.
    #[serde(default)]
    pub value: serde_json::Value,
}

/// What `_bulk_docs` says about one document, in the order sent.
#[derive(Debug, Clone, Deserialize, PartialEq, Eq)]
pub struct BulkAnswer {
    /// The document, if the store names it.
    #[serde(default)]
    pub id: String,
    /// Absent when the document was written.
    #[serde(default)]
    pub error: Option<String>,
    /// More about `error`.
    #[serde(default)]
    pub reason: Option<String>,
}

/// A server of CouchDB's HTTP API.
#[derive(Debug, Clone)]
pub struct Couch {
    client: Client,
    base: Url,
    settings: CouchSettings,
}

impl Couch {
    /// A client with its own connection pool. Nothing is sent yet.
    ///
    /// # Errors
    /// If the settings make no address or TLS cannot be set up.
    pub fn new(settings: CouchSettings) -> Result<Self, CouchSetupError> {
        // An IPv6 address needs brackets in a URL.
        let host = if settings.host.contains(':') && !settings.host.starts_with('[') {
            format!("[{}]", settings.host)
        } else {
            settings.host.clone()
        };
        let base = Url::parse(&format!("{}://{host}:{}/", settings.protocol, settings.port))
            .ok()
            .filter(|url| {
                matches!(url.scheme(), "http" | "https") && url.path() == "/" && url.query().is_none()
            })
            .ok_or_else(|| CouchSetupError::Address { settings: settings.clone() })?;
        let client = Client::builder()
            .pool_max_idle_per_host(CONNECTIONS_MAX)
            .connect_timeout(CONNECT_WITHIN)
            .timeout(ANSWER_WITHIN)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
            .build()
            .map_err(CouchSetupError::Client)?;
        Ok(Self { client, base, settings })
    }

    /// One database of this server.
    #[must_use]
    pub fn database(&self, name: &str) -> Database {
        Database { couch: self.clone(), name: name.to_owned() }
    }

    /// Address without credentials, for messages.
    #[must_use]
    pub fn address(&self) -> &str {
        self.base.as_str()
    }

    fn request(
        &self,
        method: Method,
        segments: &[&str],
        query: &[(&str, &str)],
    ) -> Result<RequestBuilder, CouchError> {
        let mut path = String::new();
        for segment in segments {
            if matches!(*segment, "" | "." | "..") {
                return Err(CouchError::Name { name: (*segment).to_owned() });
            }
            path.push('/');
            path.extend(utf8_percent_encode(segment, SEGMENT));
        }
        let mut url = self.base.clone();
        url.set_path(&path);
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        Ok(self
            .client
            .request(method, url)
            .basic_auth(&self.settings.username, Some(&self.settings.password))
            .header(ACCEPT, "application/json"))
    }
}

/// One database.
#[derive(Debug, Clone)]
pub struct Database {
    couch: Couch,
    name: String,
}

impl Database {
    /// The database's name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether the database answers (`GET /<db>`).
    ///
    /// # Errors
    /// As for any request; a missing database is [`CouchError::NotFound`].
    pub async fn exists(&self) -> Result<(), CouchError> {
        self.fetch("the database", self.couch.request(Method::GET, &[&self.name], &[])?).await.map(drop)
    }

    /// A document. With a revision, `If-Match` is sent as upstream does; CouchDB ignores it on GET, so the
    /// caller compares `_rev` itself.
    ///
    /// # Errors
    /// [`CouchError::NotFound`] when there is none; others as they say.
    pub async fn document(&self, id: &str, revision: Option<&str>) -> Result<Bytes, CouchError> {
        let request = self.couch.request(Method::GET, &[&self.name, id], &[])?;
        self.fetch(id, with_revision(request, revision)).await
    }

    /// An attachment of a document.
    ///
    /// # Errors
    /// As [`Database::document`].
    pub async fn attachment(
        &self,
        id: &str,
        name: &str,
        revision: Option<&str>,
    ) -> Result<Bytes, CouchError> {
        let request = self.couch.request(Method::GET, &[&self.name, id, name], &[])?;
        self.fetch(&format!("{id}/{name}"), with_revision(request, revision)).await
    }

    /// Writes documents; `body` is `{"docs":[...]}`. One answer for each, in order.
    ///
    /// # Errors
    /// If the request as a whole fails; a refused document is in its [`BulkAnswer`].
    pub async fn bulk(&self, body: Bytes) -> Result<Vec<BulkAnswer>, CouchError> {
        let request = self
            .couch
            .request(Method::POST, &[&self.name, "_bulk_docs"], &[])?
            .header(CONTENT_TYPE, "application/json")
            .body(body);
        let what = "_bulk_docs";
        let answer = self.fetch(what, request).await?;
        serde_json::from_slice(&answer)
            .map_err(|source| CouchError::Malformed { what: what.to_owned(), source })
    }

    /// Rows of a view, or `None` when it has never been built: asked with `stale`, some servers then answer
    /// `[]` instead of an object and begin to build.
    ///
    /// # Errors
    /// As for any request.
    pub async fn view(
        &self,
        design: &str,
        view: &str,
        query: &[(&str, &str)],
    ) -> Result<Option<Vec<ViewRow>>, CouchError> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Answer {
            Rows { rows: Vec<ViewRow> },
            NeverBuilt([serde_json::Value; 0]),
        }
        let what = format!("{design}/{view}");
        let request =
            self.couch.request(Method::GET, &[&self.name, "_design", design, "_view", view], query)?;
        let answer = self.fetch(&what, request).await?;
        match serde_json::from_slice(&answer) {
            Ok(Answer::Rows { rows }) => Ok(Some(rows)),
            Ok(Answer::NeverBuilt([])) => Ok(None),
            Err(source) => Err(CouchError::Malformed { what, source }),
        }
    }

    /// Sends and reads a whole answer of 2xx.
    async fn fetch(&self, what: &str, request: RequestBuilder) -> Result<Bytes, CouchError> {
        let what = || format!("{} of database {}", what, self.name);
        let answer = request
            .send()
            .await
            .map_err(|source| CouchError::Transport { what: what(), source: source.without_url() })?;
        let status = answer.status();
        if status.is_success() {
            return read(answer, ANSWER_BYTES_MAX, &what).await;
        }
        if status == StatusCode::NOT_FOUND {
            return Err(CouchError::NotFound { what: what() });
        }
        let body = read(answer, ERROR_CHARS_MAX * 4, &what).await.unwrap_or_default();
        let body = String::from_utf8_lossy(&body).trim().chars().take(ERROR_CHARS_MAX).collect();
        Err(CouchError::Refused { what: what(), status: status.as_u16(), body })
    }
}

fn with_revision(request: RequestBuilder, revision: Option<&str>) -> RequestBuilder {
    match revision {
        Some(revision) => request.header(IF_MATCH, format!("\"{revision}\"")),
        None => request,
    }
}

async fn read(answer: Response, most: usize, what: &impl Fn() -> String) -> Result<Bytes, CouchError> {
    let mut body = BytesMut::new();
    let mut stream = answer.bytes_stream();
    while let Some(chunk) = stream.next().await {
        let chunk =
            chunk.map_err(|source| CouchError::Transport { what: what(), source: source.without_url() })?;
        if body.len() + chunk.len() > most {
            return Err(CouchError::TooLarge { what: what() });
        }
        body.extend_from_slice(&chunk);
    }
    Ok(body.freeze())
}
