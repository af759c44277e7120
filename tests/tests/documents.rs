//! The documents say what the code says: tables that come from code are compared with it.
//!
//! `UPDATE_DOCS=1` rewrites them instead.

use std::fmt::Write as _;
use std::path::Path;

/// Compares what stands between the markers of `name` with `wanted`, or puts it there.
fn check(path: &Path, name: &str, wanted: &str) {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    let marker = format!("<!-- generated: {name}");
    let at = text.find(&marker).unwrap_or_else(|| panic!("{}: no marker {marker}", path.display()));
    let start = at + text[at..].find('\n').expect("the marker line ends") + 1;
    let end = start + text[start..].find("<!-- end -->").expect("the end marker follows");
    if &text[start..end] == wanted {
        return;
    }
    assert!(
        std::env::var_os("UPDATE_DOCS").is_some(),
        "{} is not current, run this test with UPDATE_DOCS=1; wanted:\n{wanted}",
        path.display()
    );
    std::fs::write(path, format!("{}{wanted}{}", &text[..start], &text[end..]))
        .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
}

#[test]
fn every_reason_to_quarantine_is_in_the_security_model() {
    let mut table = String::from("\n| reason | what was found |\n|---|---|\n");
    for reason in snapshot::Reason::ALL {
        let _ = writeln!(table, "| `{}` | {} |", reason.name(), reason.explain());
    }
    for reason in fs_overlay::FilesReason::ALL {
        let _ = writeln!(table, "| `{}` | {} |", reason.name(), reason.explain());
    }
    table.push('\n');
    check(&Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/security-model.md"), "reasons", &table);
}
