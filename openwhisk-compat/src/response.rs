//! What a container's answer means (contract 5.6), and the answers that come from us (contract 3.5).
//!
//! Pure functions: events in, an [`ActivationResponse`] out, texts to the byte.

use serde_json::Value;

use crate::entity::{ActivationResponse, StatusCode};

/// How one call to a container ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContainerReply {
    /// A whole answer with a `Content-Length`.
    Answer {
        /// The HTTP status.
        status: u16,
        /// The body, or its beginning when truncated.
        body: Vec<u8>,
        /// The announced length in bytes, when that was more than allowed and only a part was read.
        truncated: Option<u64>,
    },
    /// No answer, a cut one, one without a length, or no connection.
    NoResponse,
    /// The time limit was used up.
    TimedOut,
    /// The container ran out of memory (contract 5.7).
    OutOfMemory,
    /// Status 503: the container shuts down. The job belongs elsewhere; if there is no elsewhere, it counts
    /// as no response.
    ShuttingDown,
}

impl ContainerReply {
    /// A whole answer; 503 becomes [`ContainerReply::ShuttingDown`].
    pub fn answer(status: u16, body: Vec<u8>) -> Self {
        const SERVICE_UNAVAILABLE: u16 = 503;
        if status == SERVICE_UNAVAILABLE {
            ContainerReply::ShuttingDown
        } else {
            ContainerReply::Answer { status, body, truncated: None }
        }
    }
}

/// The bounds one call ran under.
#[derive(Debug, Clone, Copy)]
pub struct CallLimits {
    /// The action's time limit in milliseconds.
    pub timeout_ms: u32,
    /// The longest answer taken whole, in bytes (contract 5.5).
    pub allowed_bytes: u64,
}

const OK: u16 = 200;

/// The meaning of `/init`'s reply after `elapsed_ms`: go on to `/run`, or this response (rows init-1 to
/// init-6).
///
/// # Errors
/// The response of an activation whose initialisation failed; always a developer error.
pub fn init_response(
    reply: &ContainerReply,
    elapsed_ms: u64,
    limits: &CallLimits,
) -> Result<(), ActivationResponse> {
    if timed_out(reply, elapsed_ms, limits) {
        return Err(developer_error(timeout_text(limits.timeout_ms, true), None));
    }
    Err(match reply {
        ContainerReply::Answer { status: OK, truncated: None, .. } => return Ok(()),
        ContainerReply::Answer { body, truncated: Some(length), .. } => {
            developer_error(truncated_text(*length, limits.allowed_bytes, body), Some(*length))
        }
        ContainerReply::Answer { body, truncated: None, .. } => {
            let text = String::from_utf8_lossy(body);
            let error = match crate::json::parse(&text) {
                Ok(Value::Object(mut members)) => members.remove("error"),
                _ => None,
            };
            let error = error.unwrap_or_else(|| {
                Value::String(with_body("The action failed during initialization", &text))
            });
            developer_error(error, Some(utf16_length(&text)))
        }
        ContainerReply::OutOfMemory => developer_error(MEMORY_EXHAUSTED, None),
        ContainerReply::NoResponse | ContainerReply::TimedOut | ContainerReply::ShuttingDown => {
            developer_error("The action did not initialize and exited unexpectedly.", None)
        }
    })
}

/// The meaning of `/run`'s reply after `elapsed_ms` (rows run-1 to run-9).
pub fn run_response(reply: ContainerReply, elapsed_ms: u64, limits: &CallLimits) -> ActivationResponse {
    if timed_out(&reply, elapsed_ms, limits) {
        return developer_error(timeout_text(limits.timeout_ms, false), None);
    }
    match reply {
        ContainerReply::Answer { body, truncated: Some(length), .. } => ActivationResponse::error(
            StatusCode::ApplicationError,
            truncated_text(length, limits.allowed_bytes, &body),
            Some(length),
        ),
        ContainerReply::Answer { status, body, truncated: None } => {
            let text = String::from_utf8_lossy(&body);
            let size = utf16_length(&text);
            match (crate::json::parse(&text), status) {
                (Ok(Value::Object(mut members)), OK) => match members.remove("error") {
                    Some(error) => ActivationResponse::error(StatusCode::ApplicationError, error, Some(size)),
                    None => ActivationResponse::success(Value::Object(members), size),
                },
                (Ok(array @ Value::Array(_)), OK) => ActivationResponse::success(array, size),
                (Ok(Value::Object(mut members)), _) if members.contains_key("error") => {
                    developer_error(members.remove("error").unwrap_or_default(), Some(size))
                }
                _ => {
                    let text =
                        with_body("The action did not produce a valid JSON or JSON Array response", &text);
                    developer_error(text, Some(size))
                }
            }
        }
        ContainerReply::OutOfMemory => developer_error(MEMORY_EXHAUSTED, None),
        ContainerReply::NoResponse | ContainerReply::TimedOut | ContainerReply::ShuttingDown => {
            developer_error(ABNORMAL_RUN, None)
        }
    }
}

/// Whether the time limit decides (it precedes every row): the annotation `timeout` of the record.
pub fn timed_out(reply: &ContainerReply, elapsed_ms: u64, limits: &CallLimits) -> bool {
    *reply == ContainerReply::TimedOut || elapsed_ms >= u64::from(limits.timeout_ms)
}

const MEMORY_EXHAUSTED: &str = "The action exhausted its memory and was aborted.";
const ABNORMAL_RUN: &str = "The action did not produce a valid response and exited unexpectedly.";

fn developer_error(error: impl Into<Value>, size: Option<u64>) -> ActivationResponse {
    ActivationResponse::error(StatusCode::DeveloperError, error, size)
}

fn timeout_text(timeout_ms: u32, init: bool) -> String {
    let phase = if init { " during initialization" } else { "" };
    format!("The action exceeded its time limits of {timeout_ms} milliseconds{phase}.")
}

fn truncated_text(length: u64, allowed: u64, body: &[u8]) -> String {
    let body = String::from_utf8_lossy(body);
    format!(
        "The action produced a response that exceeded the allowed length: {length} > {allowed} bytes. \
         The truncated response was: {body}"
    )
}

/// `text: body`, or `text.` without a body.
fn with_body(text: &str, body: &str) -> String {
    if body.is_empty() { format!("{text}.") } else { format!("{text}: {body}") }
}

/// The length the JVM counts.
fn utf16_length(text: &str) -> u64 {
    if text.is_ascii() {
        return text.len() as u64;
    }
    text.chars().map(|c| if u32::from(c) > 0xffff { 2 } else { 1 }).sum()
}

/// What an activation answers that never reached a container (contract 3.5, 5.6 prov-1 to prov-3, 6.3).
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fallback {
    /// The action has no document.
    NotFound,
    /// The document cannot be read or is another type of entity.
    Incompatible,
    /// The store failed, or the action is not executable.
    NotFetched,
    /// The namespace is on the blacklist.
    Blacklisted,
    /// The action's limits exceed the user's; the text names which (see [`crate::limits`]).
    LimitExceeded(String),
    /// The arguments cannot be used (see [`crate::message::ActivationMessage::unusable_content`]); ours alone,
    /// upstream drops such a message.
    UnusableArguments(String),
    /// No container could be created.
    NotProvisioned,
    /// The image of a blackbox action could not be pulled.
    ImageNotPulled(String),
    /// The image of a blackbox action has no executable to start.
    NoExecutable(String),
    /// Something went wrong that should not: an aborted activation without a better answer, or one that a
    /// crash of the invoker cut off.
    Unexpected,
}

impl Fallback {
    /// The response.
    pub fn response(&self) -> ActivationResponse {
        use StatusCode::{ApplicationError, DeveloperError, WhiskError};
        let (status, text) = match self {
            Fallback::NotFound => {
                (ApplicationError, "Action could not be found or may have been deleted.".to_owned())
            }
            Fallback::Incompatible => {
                (WhiskError, "Action version is not compatible and cannot be invoked.".to_owned())
            }
            Fallback::NotFetched => (WhiskError, "Action could not be fetched.".to_owned()),
            Fallback::Blacklisted => {
                (ApplicationError, "The action was not invoked due to a blacklisted namespace.".to_owned())
            }
            Fallback::LimitExceeded(text) => (ApplicationError, text.clone()),
            Fallback::UnusableArguments(reason) => {
                (ApplicationError, format!("The action was not invoked: its {reason}."))
            }
            Fallback::NotProvisioned => {
                (WhiskError, "Failed to provision resources to run the action.".to_owned())
            }
            Fallback::ImageNotPulled(image) => {
                (DeveloperError, format!("Failed to pull container image '{image}'."))
            }
            Fallback::NoExecutable(image) => {
                (DeveloperError, format!("executable file not found in image {image}"))
            }
            Fallback::Unexpected => (WhiskError, ABNORMAL_RUN.to_owned()),
        };
        ActivationResponse::error(status, text, None)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    const LIMITS: CallLimits = CallLimits { timeout_ms: 60_000, allowed_bytes: 1_048_576 };

    fn answer(status: u16, body: &str) -> ContainerReply {
        ContainerReply::answer(status, body.as_bytes().to_vec())
    }

    fn truncated(status: u16) -> ContainerReply {
        ContainerReply::Answer { status, body: b"{\"a\":\"zz".to_vec(), truncated: Some(1_100_008) }
    }

    fn as_json(response: &ActivationResponse) -> Value {
        serde_json::to_value(response).expect("a response serialises")
    }

    const TRUNCATED: &str = "The action produced a response that exceeded the allowed length: 1100008 > 1048576 bytes. \
                             The truncated response was: {\"a\":\"zz";

    #[test]
    fn rows_of_init() {
        let failure = "The action failed during initialization";
        let rows = [
            ("init-1", answer(200, r#"{"ok":true}"#), Value::Null),
            ("init-1", answer(200, "anything"), Value::Null),
            ("init-1", answer(200, ""), Value::Null),
            (
                "init-2",
                answer(400, r#"{"error":"init bad"}"#),
                json!({"statusCode":2,"result":{"error":"init bad"},"size":20}),
            ),
            (
                "init-2",
                answer(502, r#"{"error":null,"x":1}"#),
                json!({"statusCode":2,"result":{"error":null},"size":20}),
            ),
            (
                "init-2",
                answer(201, r#"{"error":{"a":1}}"#),
                json!({"statusCode":2,"result":{"error":{"a":1}},"size":17}),
            ),
            (
                "init-3",
                answer(500, "plain failure"),
                json!({"statusCode":2,"result":{"error":format!("{failure}: plain failure")},"size":13}),
            ),
            (
                "init-3",
                answer(500, r#"{"a":1}"#),
                json!({"statusCode":2,"result":{"error":format!("{failure}: {{\"a\":1}}")},"size":7}),
            ),
            (
                "init-3",
                answer(500, "[1]"),
                json!({"statusCode":2,"result":{"error":format!("{failure}: [1]")},"size":3}),
            ),
            (
                "init-3",
                answer(500, ""),
                json!({"statusCode":2,"result":{"error":format!("{failure}.")},"size":0}),
            ),
            ("init-4", truncated(200), json!({"statusCode":2,"result":{"error":TRUNCATED},"size":1_100_008})),
            ("init-4", truncated(500), json!({"statusCode":2,"result":{"error":TRUNCATED},"size":1_100_008})),
            (
                "init-5",
                ContainerReply::OutOfMemory,
                json!({"statusCode":2,"result":{"error":"The action exhausted its memory and was aborted."}}),
            ),
            (
                "init-6",
                ContainerReply::NoResponse,
                json!({"statusCode":2,"result":{"error":"The action did not initialize and exited unexpectedly."}}),
            ),
            (
                "init-6, nowhere else to go",
                answer(503, "{}"),
                json!({"statusCode":2,"result":{"error":"The action did not initialize and exited unexpectedly."}}),
            ),
        ];
        for (row, reply, expected) in rows {
            let found = match init_response(&reply, 59_999, &LIMITS) {
                Ok(()) => Value::Null,
                Err(response) => as_json(&response),
            };
            assert_eq!(found, expected, "{row}");
        }
    }

    #[test]
    fn rows_of_run() {
        let invalid = "The action did not produce a valid JSON or JSON Array response";
        let abnormal = "The action did not produce a valid response and exited unexpectedly.";
        let rows = [
            (
                "run-1",
                answer(200, r#"{"greeting":"hi"}"#),
                json!({"statusCode":0,"result":{"greeting":"hi"},"size":17}),
            ),
            ("run-1", answer(200, "{}\n"), json!({"statusCode":0,"result":{},"size":3})),
            ("run-2", answer(200, "[1,{}]"), json!({"statusCode":0,"result":[1,{}],"size":6})),
            (
                "run-3",
                answer(200, r#"{"error":"bad thing","other":1}"#),
                json!({"statusCode":1,"result":{"error":"bad thing"},"size":31}),
            ),
            (
                "run-3",
                answer(200, r#"{"error":null}"#),
                json!({"statusCode":1,"result":{"error":null},"size":14}),
            ),
            (
                "run-4",
                answer(400, r#"{"error":"four hundred"}"#),
                json!({"statusCode":2,"result":{"error":"four hundred"},"size":24}),
            ),
            (
                "run-5",
                answer(404, r#"{"a":1}"#),
                json!({"statusCode":2,"result":{"error":format!("{invalid}: {{\"a\":1}}")},"size":7}),
            ),
            (
                "run-5",
                answer(201, "[1]"),
                json!({"statusCode":2,"result":{"error":format!("{invalid}: [1]")},"size":3}),
            ),
            (
                "run-6",
                answer(200, "hello"),
                json!({"statusCode":2,"result":{"error":format!("{invalid}: hello")},"size":5}),
            ),
            (
                "run-6",
                answer(200, "\"str\""),
                json!({"statusCode":2,"result":{"error":format!("{invalid}: \"str\"")},"size":5}),
            ),
            (
                "run-6",
                answer(500, "null"),
                json!({"statusCode":2,"result":{"error":format!("{invalid}: null")},"size":4}),
            ),
            (
                "run-6",
                answer(200, "{} {}"),
                json!({"statusCode":2,"result":{"error":format!("{invalid}: {{}} {{}}")},"size":5}),
            ),
            (
                "run-6",
                answer(200, ""),
                json!({"statusCode":2,"result":{"error":format!("{invalid}.")},"size":0}),
            ),
            ("run-7", truncated(200), json!({"statusCode":1,"result":{"error":TRUNCATED},"size":1_100_008})),
            ("run-7", truncated(404), json!({"statusCode":1,"result":{"error":TRUNCATED},"size":1_100_008})),
            (
                "run-8",
                ContainerReply::OutOfMemory,
                json!({"statusCode":2,"result":{"error":"The action exhausted its memory and was aborted."}}),
            ),
            ("run-9", ContainerReply::NoResponse, json!({"statusCode":2,"result":{"error":abnormal}})),
            (
                "run-9, nowhere else to go",
                answer(503, "{}"),
                json!({"statusCode":2,"result":{"error":abnormal}}),
            ),
        ];
        for (row, reply, expected) in rows {
            assert_eq!(as_json(&run_response(reply, 59_999, &LIMITS)), expected, "{row}");
        }
    }

    #[test]
    fn the_time_limit_precedes_every_row() {
        let init = "The action exceeded its time limits of 60000 milliseconds during initialization.";
        let run = "The action exceeded its time limits of 60000 milliseconds.";
        for reply in [
            answer(200, "{}"),
            answer(500, r#"{"error":"x"}"#),
            truncated(200),
            ContainerReply::OutOfMemory,
            ContainerReply::NoResponse,
            ContainerReply::ShuttingDown,
            ContainerReply::TimedOut,
        ] {
            let response = init_response(&reply, 60_000, &LIMITS).expect_err("too late");
            assert_eq!(as_json(&response), json!({"statusCode":2,"result":{"error":init}}), "{reply:?}");
            assert_eq!(
                as_json(&run_response(reply.clone(), 60_000, &LIMITS)),
                json!({"statusCode":2,"result":{"error":run}}),
                "{reply:?}"
            );
        }
        // The client's own clock counts as well as ours.
        let early = run_response(ContainerReply::TimedOut, 59_990, &LIMITS);
        assert_eq!(as_json(&early), json!({"statusCode":2,"result":{"error":run}}));
    }

    #[test]
    fn size_counts_utf16_units() {
        let size = |body: &str| run_response(answer(200, body), 0, &LIMITS).size;
        assert_eq!(size(r#"{"a":"ä"}"#), Some(9));
        assert_eq!(size(r#"{"a":"😀"}"#), Some(10));
        let broken = ContainerReply::answer(200, b"\xff\xfe".to_vec());
        let response = run_response(broken, 0, &LIMITS);
        assert_eq!((response.status_code, response.size), (StatusCode::DeveloperError, Some(2)));
    }

    #[test]
    fn numbers_keep_their_digits() {
        let body = r#"{"n":1234567890123456789012345678901234567890,"x":1.10,"e":1E+3}"#;
        let response = run_response(answer(200, body), 0, &LIMITS);
        let written = serde_json::to_string(&response.result).expect("serialises");
        assert_eq!(written.to_lowercase(), body.to_lowercase());
    }

    #[test]
    fn fallbacks_have_the_contract_s_texts() {
        for (fallback, status, text) in [
            (Fallback::NotFound, 1, "Action could not be found or may have been deleted."),
            (Fallback::Incompatible, 3, "Action version is not compatible and cannot be invoked."),
            (Fallback::NotFetched, 3, "Action could not be fetched."),
            (Fallback::Blacklisted, 1, "The action was not invoked due to a blacklisted namespace."),
            (Fallback::LimitExceeded("requirement failed: x".to_owned()), 1, "requirement failed: x"),
            (
                Fallback::UnusableArguments("arguments are 7".to_owned()),
                1,
                "The action was not invoked: its arguments are 7.",
            ),
            (Fallback::NotProvisioned, 3, "Failed to provision resources to run the action."),
            (Fallback::ImageNotPulled("a/b:1".to_owned()), 2, "Failed to pull container image 'a/b:1'."),
            (Fallback::NoExecutable("a/b".to_owned()), 2, "executable file not found in image a/b"),
            (Fallback::Unexpected, 3, "The action did not produce a valid response and exited unexpectedly."),
        ] {
            assert_eq!(as_json(&fallback.response()), json!({"statusCode":status,"result":{"error":text}}));
        }
    }

    proptest! {
        #[test]
        fn no_body_panics(body in proptest::collection::vec(any::<u8>(), 0..80), status in any::<u16>(), cut in any::<Option<u64>>()) {
            let reply = ContainerReply::Answer { status, body, truncated: cut };
            let _ = init_response(&reply, 0, &LIMITS);
            let _ = run_response(reply, 0, &LIMITS);
        }
    }
}
