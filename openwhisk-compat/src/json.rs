//! JSON that runtimes and callers write, read as the JVM reads it.

use std::borrow::Cow;

use serde_json::Value;

/// Reads JSON text. A lone surrogate in an escape (`"\ud800"`, as JavaScript writes half of a cut emoji) is
/// no Unicode text and serde_json refuses it; the JVM lets it pass and writes `?` for it, and so do we.
pub(crate) fn parse(text: &str) -> serde_json::Result<Value> {
    serde_json::from_str(text).or_else(|error| match without_lone_surrogates(text) {
        Cow::Borrowed(_) => Err(error),
        Cow::Owned(text) => serde_json::from_str(&text),
    })
}

fn without_lone_surrogates(text: &str) -> Cow<'_, str> {
    const ESCAPE: usize = 6;
    let bytes = text.as_bytes();
    let unit = |at: usize| {
        let digits = text.get(at..at + ESCAPE)?.strip_prefix("\\u")?;
        u16::from_str_radix(digits, 16).ok().filter(|_| !digits.starts_with('+'))
    };
    let is_high = |unit: u16| (0xd800..0xdc00).contains(&unit);
    let is_low = |unit: u16| (0xdc00..0xe000).contains(&unit);
    let mut cleaned = String::new();
    let mut copied = 0;
    let mut at = 0;
    while at < bytes.len() {
        if bytes[at] != b'\\' {
            at += 1;
            continue;
        }
        match unit(at) {
            Some(high) if is_high(high) && unit(at + ESCAPE).is_some_and(is_low) => at += 2 * ESCAPE,
            Some(lone) if is_high(lone) || is_low(lone) => {
                cleaned.push_str(&text[copied..at]);
                cleaned.push('?');
                at += ESCAPE;
                copied = at;
            }
            // Any other escape is at least two bytes, the second of which may be a backslash.
            _ => at += 2,
        }
    }
    if copied == 0 {
        return Cow::Borrowed(text);
    }
    cleaned.push_str(&text[copied..]);
    Cow::Owned(cleaned)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn lone_surrogates_become_question_marks() {
        for (text, expected) in [
            (r#""a\ud800b""#, json!("a?b")),
            (r#""\udc00\ud83d\ude00\ud83d""#, json!("?😀?")),
            (r#""\ud800\ud83d\ude00""#, json!("?😀")),
            (r#""\\ud800 \ud800""#, json!("\\ud800 ?")),
            (r#"{"\uD800":1}"#, json!({"?": 1})),
            (r#""\ud83d\ude00""#, json!("😀")),
        ] {
            assert_eq!(parse(text).expect(text), expected);
        }
        for bad in [r#""\ud80""#, r#""\ud800"#, "{", r#""\u+d80""#, "\\ud800"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn no_text_panics_and_good_json_is_untouched(text in "[\\\\ud8c0-9a-f\"é+{}]{0,40}") {
            if let Ok(value) = serde_json::from_str::<Value>(&text) {
                prop_assert_eq!(parse(&text).ok(), Some(value));
            }
            let _ = parse(&text);
        }
    }
}
