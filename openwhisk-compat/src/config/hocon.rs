//! The part of HOCON that configuration files of OpenWhisk use (contract 1.3, `OPENWHISK_CONFIG`).
//!
//! Comments, objects, dotted and quoted keys, `=`, `:` or a brace after a key, quoted and plain texts, arrays
//! of texts. Includes and substitutions are refused by name: leaving them out silently would change settings.

/// Nesting deeper than this is no configuration.
const DEPTH_MAX: usize = 32;

/// Paths and texts of all values, in order; elements of arrays have their index as the last part.
///
/// # Errors
/// What is wrong, and in which line.
pub(super) fn parse(text: &str) -> Result<Vec<(String, String)>, String> {
    let mut parser = Parser { text, at: 0, entries: Vec::new() };
    parser.skip(true);
    if parser.take('{') {
        parser.object("", true, 1)?;
    } else {
        parser.object("", false, 1)?;
    }
    parser.skip(true);
    match parser.peek() {
        None => Ok(parser.entries),
        Some(c) => Err(parser.error(format!("unexpected `{c}`"))),
    }
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
    entries: Vec<(String, String)>,
}

impl Parser<'_> {
    fn rest(&self) -> &str {
        &self.text[self.at..]
    }

    fn peek(&self) -> Option<char> {
        self.rest().chars().next()
    }

    fn take(&mut self, c: char) -> bool {
        let found = self.peek() == Some(c);
        if found {
            self.at += c.len_utf8();
        }
        found
    }

    fn error(&self, what: String) -> String {
        let line = self.text[..self.at].bytes().filter(|b| *b == b'\n').count() + 1;
        format!("line {line}: {what}")
    }

    /// Skips blanks and comments; line ends too if `lines`.
    fn skip(&mut self, lines: bool) {
        loop {
            let rest = self.rest();
            let blank = rest.len()
                - rest.trim_start_matches(|c: char| c.is_whitespace() && (lines || c != '\n')).len();
            self.at += blank;
            let rest = self.rest();
            if rest.starts_with('#') || rest.starts_with("//") {
                self.at += rest.find('\n').unwrap_or(rest.len());
            } else if blank == 0 {
                return;
            }
        }
    }

    fn object(&mut self, path: &str, braced: bool, depth: usize) -> Result<(), String> {
        if depth > DEPTH_MAX {
            return Err(self.error(format!("nested deeper than {DEPTH_MAX}")));
        }
        loop {
            self.skip(true);
            while self.take(',') {
                self.skip(true);
            }
            match self.peek() {
                None if braced => return Err(self.error("`}` is missing".to_owned())),
                None => return Ok(()),
                Some('}') if braced => {
                    self.at += 1;
                    return Ok(());
                }
                Some(_) => {
                    let key = self.key()?;
                    let path = if path.is_empty() { key } else { format!("{path}.{key}") };
                    self.value(&path, depth)?;
                }
            }
        }
    }

    fn key(&mut self) -> Result<String, String> {
        let mut key = String::new();
        loop {
            if self.peek() == Some('"') {
                key.push_str(&self.quoted()?);
            } else {
                let rest = self.rest();
                let end = rest
                    .find(['=', ':', '{', '"', '\n', '}', ',', '[', ']', '#', '$', '+'])
                    .unwrap_or(rest.len());
                let part = rest[..end].trim_end().to_owned();
                if part.is_empty() {
                    break;
                }
                self.at += part.len();
                key.push_str(&part);
            }
        }
        if key.is_empty() {
            let found = self.peek().map_or_else(|| "the end".to_owned(), |c| format!("`{c}`"));
            return Err(self.error(format!("expected a key, found {found}")));
        }
        if key.split_whitespace().next() == Some("include") {
            return Err(self.error("`include` is not supported".to_owned()));
        }
        Ok(key)
    }

    fn value(&mut self, path: &str, depth: usize) -> Result<(), String> {
        self.skip(false);
        let separated = self.take('=') || self.take(':');
        if self.rest().starts_with("+=") {
            return Err(self.error(format!("`+=` after {path} is not supported")));
        }
        self.skip(separated);
        if self.take('{') {
            return self.object(path, true, depth + 1);
        }
        if !separated {
            return Err(self.error(format!("expected `=`, `:` or an object after {path}")));
        }
        if self.take('[') {
            return self.array(path);
        }
        let text = self.scalar()?;
        self.entries.push((path.to_owned(), text));
        Ok(())
    }

    fn array(&mut self, path: &str) -> Result<(), String> {
        let mut index = 0;
        loop {
            self.skip(true);
            while self.take(',') {
                self.skip(true);
            }
            match self.peek() {
                // A text would end before the brace, and so not begin.
                None | Some('}') => return Err(self.error("`]` is missing".to_owned())),
                Some(']') => {
                    self.at += 1;
                    return Ok(());
                }
                Some('{' | '[') => return Err(self.error(format!("{path} holds something other than texts"))),
                Some(_) => {
                    let text = self.scalar()?;
                    self.entries.push((format!("{path}.{index}"), text));
                    index += 1;
                }
            }
        }
    }

    /// One text: quoted and plain pieces up to the end of the line or of the enclosing value.
    fn scalar(&mut self) -> Result<String, String> {
        let mut text = String::new();
        let mut plain_end = 0;
        loop {
            let rest = self.rest();
            if rest.starts_with('"') {
                text.push_str(&self.quoted()?);
                plain_end = text.len();
                continue;
            }
            let Some(c) = rest.chars().next() else { break };
            if matches!(c, '\n' | ',' | '}' | ']' | '#') || rest.starts_with("//") {
                break;
            }
            if matches!(c, '$' | '{' | '[') {
                return Err(self.error(format!("`{c}` in a value: substitutions are not supported")));
            }
            text.push(c);
            self.at += c.len_utf8();
        }
        // Blanks at the end belong to the value only inside quotes.
        let kept = text[plain_end..].trim_end().len();
        text.truncate(plain_end + kept);
        Ok(text)
    }

    fn quoted(&mut self) -> Result<String, String> {
        if let Some(rest) = self.rest().strip_prefix("\"\"\"") {
            let Some(end) = rest.find("\"\"\"") else {
                return Err(self.error("`\"\"\"` is missing".to_owned()));
            };
            let text = rest[..end].to_owned();
            self.at += end + 6;
            return Ok(text);
        }
        // As in JSON: find the closing quote, let the JSON reader do the rest.
        let mut escaped = false;
        let end = self.rest().char_indices().skip(1).find_map(|(index, c)| {
            let closes = c == '"' && !escaped;
            escaped = c == '\\' && !escaped;
            closes.then_some(index)
        });
        let Some(end) = end else { return Err(self.error("a closing quote is missing".to_owned())) };
        let text =
            serde_json::from_str(&self.rest()[..=end]).map_err(|error| self.error(error.to_string()))?;
        self.at += end + 1;
        Ok(text)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn forms() {
        let text = r#"
            # comment
            whisk {
              kafka { topics.prefix = "p_" // more
                hosts: a b   , replication-factor = 3 }
              "quoted.key" : """raw "text" """
              couchdb.databases { WhiskAuth: subjects, WhiskEntity = "whisks" }
              list = [ "a", b c
                       d ]
              url = "http://x"/y
            }
            whisk.memory.min = 128 m
        "#;
        let entries = parse(text).expect("a configuration");
        let expected = [
            ("whisk.kafka.topics.prefix", "p_"),
            ("whisk.kafka.hosts", "a b"),
            ("whisk.kafka.replication-factor", "3"),
            ("whisk.quoted.key", "raw \"text\" "),
            ("whisk.couchdb.databases.WhiskAuth", "subjects"),
            ("whisk.couchdb.databases.WhiskEntity", "whisks"),
            ("whisk.list.0", "a"),
            ("whisk.list.1", "b c"),
            ("whisk.list.2", "d"),
            ("whisk.url", "http://x/y"),
            ("whisk.memory.min", "128 m"),
        ];
        assert_eq!(entries, expected.map(|(path, text)| (path.to_owned(), text.to_owned())));
        assert_eq!(parse("{\"a\":{\"b\":1}}").expect("JSON"), [("a.b".to_owned(), "1".to_owned())]);
    }

    #[test]
    fn what_is_not_supported_is_said() {
        for (text, expected) in [
            ("include classpath(\"application.conf\")", "line 1: `include` is not supported"),
            ("a = ${b}", "line 1: `$` in a value: substitutions are not supported"),
            ("\na {", "line 2: `}` is missing"),
            ("a = \"b", "line 1: a closing quote is missing"),
            ("a", "line 1: expected `=`, `:` or an object after a"),
            ("a = [ { b = 1 } ]", "line 1: a holds something other than texts"),
            ("a = [ b", "line 1: `]` is missing"),
            ("a { b = [ c }", "line 1: `]` is missing"),
            ("}", "line 1: expected a key, found `}`"),
        ] {
            assert_eq!(parse(text), Err(expected.to_owned()), "{text}");
        }
        assert!(parse(&"a{".repeat(100)).is_err());
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "[a-z={}:\\[\\],\"\\\\ \n#/$.é]{0,60}") {
            let _ = parse(&text);
        }
    }
}
