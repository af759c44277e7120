//! Transaction ids (contract 2.2).

use std::fmt;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};
use serde_json::Value;
use serde_json::value::RawValue;

/// The transaction an activation belongs to.
///
/// The JSON text is kept exactly as it came and written back exactly so: the controller recognises the
/// acknowledgement of its health test by comparing the whole value with its own constant.
#[derive(Clone)]
pub struct TransactionId {
    /// The JSON text, verbatim.
    raw: Arc<RawValue>,
    id: Arc<str>,
    start_ms: i64,
    extra_logging: bool,
}

/// What is read out of the JSON array.
struct Parts {
    id: Arc<str>,
    start_ms: i64,
    extra_logging: bool,
}

impl Parts {
    /// `[id, startMillis]`, `[id, startMillis, true]`, either with the parent's array appended.
    fn read(raw: &str) -> Option<Self> {
        let array: Vec<&RawValue> = serde_json::from_str(raw).ok()?;
        let [id, start, rest @ ..] = array.as_slice() else { return None };
        let id: String = serde_json::from_str(id.get()).ok()?;
        let start: Value = serde_json::from_str(start.get()).ok()?;
        #[expect(
            clippy::cast_possible_truncation,
            reason = "`as` saturates, and an absurd start is still a start"
        )]
        let start_ms = start.as_i64().or_else(|| start.as_f64().map(|ms| ms as i64))?;
        let extra_logging = rest.first().is_some_and(|flag| flag.get() == "true");
        Some(Self { id: id.into(), start_ms, extra_logging })
    }

    fn unknown() -> Self {
        Self { id: TransactionId::UNKNOWN.into(), start_ms: 0, extra_logging: false }
    }
}

impl TransactionId {
    /// The id of a transaction that could not be read.
    pub const UNKNOWN: &'static str = "sid_unknown";
    /// The id under which controllers test an invoker's health.
    pub const INVOKER_HEALTH: &'static str = "sid_invokerHealth";
    /// The id under which an invoker logs what belongs to no activation.
    pub const INVOKER: &'static str = "sid_invoker";

    /// A transaction of our own, begun at `start_ms` (milliseconds since the epoch).
    pub fn new(id: &str, start_ms: i64) -> Self {
        Self::from_value(&serde_json::json!([id, start_ms]))
    }

    /// A transaction as any JSON value; one that cannot be read counts as [`TransactionId::UNKNOWN`].
    pub fn from_value(value: &Value) -> Self {
        Self::from_text(value.to_string()).unwrap_or_else(|| Self::new(Self::UNKNOWN, 0))
    }

    fn from_text(json: String) -> Option<Self> {
        RawValue::from_string(json).ok().map(Self::from_raw)
    }

    fn from_raw(raw: Box<RawValue>) -> Self {
        let Parts { id, start_ms, extra_logging } = Parts::read(raw.get()).unwrap_or_else(Parts::unknown);
        Self { raw: raw.into(), id, start_ms, extra_logging }
    }

    /// The transaction's name: 32 letters and digits, or one of the `sid_` names.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// When the transaction began, by the controller's clock, in milliseconds since the epoch. 0 when unknown.
    pub fn start_ms(&self) -> i64 {
        self.start_ms
    }

    /// Whether the caller asked for extra logging (header `X-OW-EXTRA-LOGGING: on`).
    pub fn extra_logging(&self) -> bool {
        self.extra_logging
    }

    /// The JSON text as it came.
    pub fn as_json(&self) -> &str {
        self.raw.get()
    }

    /// How long the transaction has waited at `now_ms`; never negative, the two clocks may differ
    /// (contract 13.17). 0 for an unknown transaction.
    pub fn waited_ms(&self, now_ms: u64) -> u64 {
        match u64::try_from(self.start_ms) {
            Ok(start) if start > 0 => now_ms.saturating_sub(start),
            _ => 0,
        }
    }
}

impl fmt::Display for TransactionId {
    /// The form upstream logs: `#tid_<id>`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#tid_{}", self.id)
    }
}

impl fmt::Debug for TransactionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "TransactionId({})", self.raw.get())
    }
}

impl PartialEq for TransactionId {
    fn eq(&self, other: &Self) -> bool {
        self.raw.get() == other.raw.get()
    }
}

impl Eq for TransactionId {}

impl Serialize for TransactionId {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.raw.serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for TransactionId {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Box::<RawValue>::deserialize(deserializer).map(Self::from_raw)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(json: &str) -> TransactionId {
        serde_json::from_str(json).expect(json)
    }

    #[test]
    fn every_form_is_read() {
        let plain = read(r#"["7bAz4Wf0Sp0vkZUmzkAfZCbmMk1OsQEn",1711531200123]"#);
        assert_eq!(plain.id(), "7bAz4Wf0Sp0vkZUmzkAfZCbmMk1OsQEn");
        assert_eq!(plain.start_ms(), 1_711_531_200_123);
        assert!(!plain.extra_logging());
        assert!(read(r#"["a",1,true]"#).extra_logging());
        assert!(read(r#"["a",1,true,["parent",0]]"#).extra_logging());
        let child = read(r#"["child",1711531200200,["parent",1711531200123]]"#);
        assert_eq!((child.id(), child.extra_logging()), ("child", false));
    }

    #[test]
    fn every_value_is_echoed_to_the_letter() {
        for json in [
            r#"["child",1711531200200,["parent",1711531200123]]"#,
            r#"[ "spaced" , 1711531200200 ]"#,
            r#"["a\u00e4\/",1.7115312002E12,true]"#,
            r#"["",-5]"#,
            r#"["a",123456789012345678901234567890]"#,
            "null",
            "42",
            r#""text""#,
            "{}",
            "[]",
            r#"[1,"a"]"#,
        ] {
            assert_eq!(serde_json::to_string(&read(json)).expect("serialises"), json);
        }
    }

    #[test]
    fn unreadable_counts_as_unknown() {
        for json in ["null", "[]", r#"["only"]"#, r#"[1,2]"#, r#"["a","b"]"#, "{}"] {
            let transid = read(json);
            assert_eq!((transid.id(), transid.start_ms()), (TransactionId::UNKNOWN, 0), "{json}");
        }
    }

    #[test]
    fn waiting_is_never_negative() {
        assert_eq!(TransactionId::new("a", 100).waited_ms(177), 77);
        assert_eq!(TransactionId::new("a", 100).waited_ms(50), 0);
        assert_eq!(TransactionId::new("a", -100).waited_ms(50), 0);
        assert_eq!(read("[]").waited_ms(50), 0);
    }
}
