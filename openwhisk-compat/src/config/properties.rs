//! `whisk.properties`: the flat family's file (contract 1.3).

use std::path::{Path, PathBuf};

/// The nearest `whisk.properties`, from `directory` upwards.
pub fn find_properties_file(directory: &Path) -> Option<PathBuf> {
    directory.ancestors().map(|ancestor| ancestor.join("whisk.properties")).find(|path| path.is_file())
}

/// Line number, key and value of each property, in the form of Java's properties files: `#` and `!` begin
/// comments, `=`, `:` or blanks part key from value, a backslash at the end continues the line.
pub(super) fn parse(text: &str) -> Vec<(usize, String, String)> {
    let mut properties = Vec::new();
    let mut lines = text.lines().enumerate();
    while let Some((number, line)) = lines.next() {
        let line = line.trim_start();
        if line.is_empty() || line.starts_with(['#', '!']) {
            continue;
        }
        let mut logical = line.to_owned();
        while ends_in_continuation(&logical) {
            logical.pop();
            match lines.next() {
                Some((_, more)) => logical.push_str(more.trim_start()),
                None => break,
            }
        }
        let end = logical.find(|c: char| c == '=' || c == ':' || c.is_whitespace()).unwrap_or(logical.len());
        let (key, rest) = logical.split_at(end);
        let rest = rest.trim_start();
        let value = rest.strip_prefix(['=', ':']).unwrap_or(rest).trim();
        properties.push((number + 1, key.to_owned(), value.replace("\\\\", "\\")));
    }
    properties
}

/// An odd number of backslashes at the end.
fn ends_in_continuation(line: &str) -> bool {
    line.bytes().rev().take_while(|b| *b == b'\\').count() % 2 == 1
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn forms() {
        let text = "# comment\n! too\n\nkafka.hosts=a:9092,b:9092\nport: 9000\n  wide = x y \nlong=a\\\n  b\nflag\nend=\\";
        let expected = [
            (4, "kafka.hosts", "a:9092,b:9092"),
            (5, "port", "9000"),
            (6, "wide", "x y"),
            (7, "long", "ab"),
            (9, "flag", ""),
            (10, "end", ""),
        ];
        let expected: Vec<_> = expected
            .iter()
            .map(|(line, key, value)| (*line, (*key).to_owned(), (*value).to_owned()))
            .collect();
        assert_eq!(parse(text), expected);
    }

    proptest! {
        #[test]
        fn no_text_panics(text in "[a-z=:\\\\ \n#]{0,60}") {
            let _ = parse(&text);
        }
    }
}
