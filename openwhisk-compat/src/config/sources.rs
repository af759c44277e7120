//! Where the raw texts of settings come from, and under what names.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::{Declaration, Mistake, Origin, hocon, properties};

/// Raw texts of all sources, by canonical name.
///
/// Flat properties: environment < `whisk.properties`. Tree: file < `CONFIG_` variables. Empty texts count as
/// absent everywhere, so that the empty strings of deployment scripts override nothing.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    environment: BTreeMap<String, String>,
    properties: BTreeMap<String, Text>,
    /// By canonical path, see [`canonical`].
    tree: BTreeMap<String, Text>,
}

/// A raw text and where it stands.
#[derive(Debug, Clone)]
struct Text {
    place: String,
    text: String,
}

/// A file that the configuration leads to cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("{place}: {what}")]
pub struct ReadError {
    place: String,
    what: String,
}

impl ReadError {
    pub(super) fn into_mistake(self) -> Mistake {
        Mistake { place: self.place, what: self.what }
    }
}

/// What the sources say about one setting.
pub(super) enum Lookup {
    Found {
        place: String,
        text: String,
    },
    Absent,
    /// The value names another variable, which is not set.
    Dangling(Mistake),
}

/// The longest file read, in bytes: a configuration is small.
const FILE_BYTES_MAX: u64 = 4 << 20;

impl Sources {
    /// Sources from the given variables alone.
    pub fn from_environment(environment: BTreeMap<String, String>) -> Self {
        let mut this = Self { environment, ..Self::default() };
        let mut tree = BTreeMap::new();
        for (variable, text) in &this.environment {
            if let Some(path) = variable.strip_prefix("CONFIG_").and_then(tree_path)
                && !text.is_empty()
            {
                tree.insert(canonical(&path), Text { place: variable.clone(), text: text.clone() });
            }
        }
        this.tree = tree;
        this
    }

    /// Sources of this process: its environment, `whisk.properties` upwards from its working directory, and
    /// what `OPENWHISK_CONFIG` or `OPENWHISK_ENCODED_CONFIG` holds. Variables that are not UTF-8 are left out.
    ///
    /// # Errors
    /// A file that exists and cannot be read.
    pub fn from_process() -> Result<Self, ReadError> {
        let directory = std::env::current_dir().ok();
        Self::of_environment().with_files(directory.as_deref())
    }

    /// The variables of this process alone.
    pub(super) fn of_environment() -> Self {
        let environment = std::env::vars_os()
            .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
            .collect();
        Self::from_environment(environment)
    }

    /// Adds the files that variables and the working directory lead to.
    ///
    /// # Errors
    /// A file that exists and cannot be read.
    pub fn with_files(mut self, working_directory: Option<&Path>) -> Result<Self, ReadError> {
        if let Some(path) = working_directory.and_then(properties::find_properties_file) {
            let text = read_file(&path)?;
            self = self.with_properties(&path.display().to_string(), &text);
        }
        if let Some(name) = self.environment.get("OPENWHISK_CONFIG").filter(|name| !name.is_empty()) {
            let text = read_file(&PathBuf::from(name))?;
            let place = name.clone();
            self = self.with_tree_file(&place, &text)?;
        }
        if let Some(encoded) =
            self.environment.get("OPENWHISK_ENCODED_CONFIG").filter(|text| !text.is_empty())
        {
            use base64::Engine as _;
            let place = "OPENWHISK_ENCODED_CONFIG".to_owned();
            let text = base64::engine::general_purpose::STANDARD
                .decode(encoded.trim())
                .map_err(|error| error.to_string())
                .and_then(|bytes| String::from_utf8(bytes).map_err(|error| error.to_string()))
                .map_err(|error| ReadError {
                    place: place.clone(),
                    what: format!("not base-64 of a text: {error}"),
                })?;
            self = self.with_tree_file(&place, &text)?;
        }
        Ok(self)
    }

    /// Adds the text of a `whisk.properties` file. Its lines win over variables.
    #[must_use]
    pub fn with_properties(mut self, place: &str, text: &str) -> Self {
        for (line, key, value) in properties::parse(text) {
            if !value.is_empty() {
                let place = format!("{place}, line {line}, {key}");
                self.properties.insert(key, Text { place, text: value });
            }
        }
        self
    }

    /// Adds the text of a HOCON file. `CONFIG_` variables win over it.
    ///
    /// # Errors
    /// When the text is not the part of HOCON we read.
    pub fn with_tree_file(mut self, place: &str, text: &str) -> Result<Self, ReadError> {
        let entries = hocon::parse(text).map_err(|what| ReadError { place: place.to_owned(), what })?;
        for (path, text) in entries {
            if text.is_empty() {
                continue;
            }
            let place = format!("{place}, {path}");
            self.tree.entry(canonical(&path)).or_insert(Text { place, text });
        }
        Ok(self)
    }

    pub(super) fn lookup(&self, declaration: &Declaration) -> Lookup {
        let found = match declaration.origin {
            Origin::Flat => self.properties.get(declaration.path).cloned().or_else(|| {
                let place = flat_variable(declaration.path);
                self.variable(&place).map(|text| Text { place, text })
            }),
            Origin::Env => {
                let place = declaration.path.to_owned();
                self.variable(&place).map(|text| Text { place, text })
            }
            Origin::Tree => match self.tree.get(&canonical(&format!("whisk.{}", declaration.path))) {
                Some(entry) => match self.resolve(entry) {
                    Ok(resolved) => resolved,
                    Err(mistake) => return Lookup::Dangling(mistake),
                },
                None => None,
            },
        };
        match found {
            Some(Text { place, text }) => Lookup::Found { place, text },
            None => Lookup::Absent,
        }
    }

    /// All entries below a tree path, by the rest of their names.
    pub(super) fn below(&self, declaration: &Declaration) -> BTreeMap<String, String> {
        let prefix = canonical(&format!("whisk.{}.", declaration.path));
        self.tree
            .range(prefix.clone()..)
            .take_while(|(path, _)| path.starts_with(&prefix))
            .filter_map(|(path, entry)| {
                let resolved = self.resolve(entry).ok().flatten()?;
                Some((path[prefix.len()..].to_owned(), resolved.text))
            })
            .collect()
    }

    /// Names of `CONFIG_whisk_` and `REWIND_` variables that no declaration reads: perhaps misspelt.
    pub fn unread(&self, declarations: &[Declaration]) -> Vec<String> {
        let paths: Vec<String> = declarations
            .iter()
            .filter(|declaration| declaration.origin == Origin::Tree)
            .map(|declaration| canonical(&format!("whisk.{}", declaration.path)))
            .collect();
        let is_read = |path: &str| {
            paths.iter().any(|known| {
                path.strip_prefix(known.as_str()).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
            })
        };
        let own = |variable: &str| {
            declarations.iter().any(|known| known.origin == Origin::Env && known.path == variable)
        };
        self.environment
            .keys()
            .filter(|variable| match variable.strip_prefix("CONFIG_").and_then(tree_path) {
                Some(path) => path.starts_with("whisk.") && !is_read(&canonical(&path)),
                None => variable.starts_with("REWIND_") && !own(variable),
            })
            .cloned()
            .collect()
    }

    fn variable(&self, name: &str) -> Option<String> {
        self.environment.get(name).filter(|text| !text.is_empty()).cloned()
    }

    /// Follows a value that begins with `$` to the variable it names.
    fn resolve(&self, entry: &Text) -> Result<Option<Text>, Mistake> {
        let Some(name) = entry.text.strip_prefix('$') else { return Ok(Some(entry.clone())) };
        match self.environment.get(name) {
            Some(text) if text.is_empty() => Ok(None),
            Some(text) => {
                let place = format!("{} (from {name})", entry.place);
                Ok(Some(Text { place, text: text.clone() }))
            }
            None => Err(Mistake {
                place: entry.place.clone(),
                what: format!("takes its value from `{name}`, which is not set"),
            }),
        }
    }
}

fn read_file(path: &Path) -> Result<String, ReadError> {
    use std::io::Read as _;
    let failed = |what: String| ReadError { place: path.display().to_string(), what };
    let file = std::fs::File::open(path).map_err(|error| failed(error.to_string()))?;
    let mut text = String::new();
    file.take(FILE_BYTES_MAX + 1).read_to_string(&mut text).map_err(|error| failed(error.to_string()))?;
    if text.len() as u64 > FILE_BYTES_MAX {
        return Err(failed(format!("longer than {FILE_BYTES_MAX} bytes")));
    }
    Ok(text)
}

/// `kafka.hosts` is `KAFKA_HOSTS`.
pub(super) fn flat_variable(key: &str) -> String {
    key.to_uppercase().replace('.', "_")
}

/// `whisk.container-pool.user-memory` is `CONFIG_whisk_containerPool_userMemory`.
pub(super) fn tree_variable(path: &str) -> String {
    let parts = path.split('.').map(|part| {
        let mut name = String::with_capacity(part.len());
        let mut capital = false;
        for c in part.chars() {
            match c {
                '-' => capital = true,
                c if capital => {
                    name.extend(c.to_uppercase());
                    capital = false;
                }
                c => name.push(c),
            }
        }
        name
    });
    format!("CONFIG_{}", parts.collect::<Vec<_>>().join("_"))
}

/// The path of a `CONFIG_` variable, its prefix taken off: `_` parts, and a part that begins in lower case
/// is turned from camelCase to kebab-case. `None` for a name that is no path.
pub(super) fn tree_path(name: &str) -> Option<String> {
    let parts: Vec<String> = name.split('_').map(kebab).collect();
    parts.iter().all(|part| !part.is_empty()).then(|| parts.join("."))
}

fn kebab(part: &str) -> String {
    if !part.starts_with(|c: char| c.is_ascii_lowercase()) {
        return part.to_owned();
    }
    let mut name = String::with_capacity(part.len() + 4);
    let mut previous: Option<char> = None;
    for c in part.chars() {
        let boundary = previous.is_some_and(|p| p.is_ascii_lowercase() || p.is_ascii_digit());
        if c.is_ascii_uppercase() && boundary {
            name.push('-');
        }
        name.push(c.to_ascii_lowercase());
        previous = Some(c);
    }
    name
}

/// The name under which a path is kept and looked up: `aes-128` and `aes128` are one, since a variable
/// cannot tell them apart.
fn canonical(path: &str) -> String {
    let mut name = String::with_capacity(path.len());
    let mut chars = path.chars().peekable();
    while let Some(c) = chars.next() {
        if c == '-' && chars.peek().is_some_and(char::is_ascii_digit) {
            continue;
        }
        name.push(c);
    }
    name
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn variables_and_paths() {
        for (variable, path) in [
            ("whisk_kafka_topics_invoker_retentionMs", "whisk.kafka.topics.invoker.retention-ms"),
            ("whisk_couchdb_databases_WhiskAuth", "whisk.couchdb.databases.WhiskAuth"),
            ("whisk_spi_LogStoreProvider", "whisk.spi.LogStoreProvider"),
            (
                "whisk_containerFactory_containerArgs_extraEnvVars_0",
                "whisk.container-factory.container-args.extra-env-vars.0",
            ),
        ] {
            assert_eq!(tree_path(variable).as_deref(), Some(path));
            assert_eq!(tree_variable(path), format!("CONFIG_{variable}"));
        }
        assert_eq!(tree_path("whisk__x"), None);
        assert_eq!(tree_path(""), None);
        assert_eq!(flat_variable("whisk.api.host.name"), "WHISK_API_HOST_NAME");
    }

    #[test]
    fn digits_need_no_hyphen() {
        assert_eq!(canonical("whisk.parameter-storage.aes-128"), canonical("whisk.parameter-storage.aes128"));
    }
}
