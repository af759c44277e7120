//! Action documents and the executable actions made of them (contract 4.3).

use serde::{Deserialize, Serialize};

use super::exec::is_base64;
use super::{
    ActionLimits, Annotations, AttachmentName, BLACKBOX, Code, Exec, NameError, Parameters, SEQUENCE,
    StoredCode, StoredExec, StoredLimits,
};
use crate::message::FullyQualifiedName;

/// An action as a document of the whisks database.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ActionDocument {
    /// `ns/[pkg/]name`.
    #[serde(rename = "_id", default, skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    /// The revision.
    #[serde(rename = "_rev", default, skip_serializing_if = "Option::is_none")]
    pub rev: Option<String>,
    /// Namespace, or namespace and package.
    pub namespace: String,
    /// The simple name.
    pub name: String,
    /// What to execute.
    pub exec: StoredExec,
    /// Parameters bound to the action.
    #[serde(default)]
    pub parameters: Parameters,
    /// Limits; missing ones take the standards.
    #[serde(default)]
    pub limits: StoredLimits,
    /// The version.
    #[serde(default = "first_version")]
    pub version: String,
    /// Whether it is public.
    #[serde(default)]
    pub publish: bool,
    /// Annotations.
    #[serde(default)]
    pub annotations: Annotations,
    /// When it was written, milliseconds since the epoch.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub updated: Option<u64>,
    /// `action`; absent is tolerated.
    #[serde(rename = "entityType", default, skip_serializing_if = "Option::is_none")]
    pub entity_type: Option<String>,
}

fn first_version() -> String {
    "0.0.1".to_owned()
}

/// What is needed, besides the document, to make an executable action of it.
pub trait ReadContext {
    /// The manifest's kind for `kind`, with `family:default` resolved; `None` if there is none.
    fn resolve_kind(&self, kind: &str) -> Option<String>;
    /// The limits that stand in for missing ones.
    fn standard_limits(&self) -> ActionLimits;
}

/// Why a document is no executable action. [`EntityError::NotExecutable`] is answered as an action that could
/// not be fetched, every other variant as an unreadable document (contract 3.5).
#[derive(Debug, thiserror::Error)]
pub enum EntityError {
    /// Not JSON, or a member is missing or has the wrong type.
    #[error("unreadable action document")]
    Json(#[source] serde_json::Error),
    /// The document is another kind of entity.
    #[error("document is of type `{0}`, expected an action")]
    WrongType(String),
    /// The name is not one.
    #[error("unreadable action document")]
    Name(#[source] NameError),
    /// A sequence: controllers execute those.
    #[error("action is a sequence, which an invoker does not execute")]
    NotExecutable,
    /// The manifest does not have the kind.
    #[error("kind `{0}` is not in the runtimes manifest")]
    UnknownKind(String),
    /// A blackbox action without a usable image.
    #[error("image of the action is not usable: {0}")]
    Image(String),
    /// The attachment's name cannot be read.
    #[error("attachment of the action is not usable: {0}")]
    Attachment(String),
    /// The code is in a store we do not have.
    #[error("code is in the attachment store `{scheme}:`, which is not supported")]
    ExternalAttachment {
        /// The scheme.
        scheme: String,
    },
    /// The code is in an attachment and was not given, or the other way round.
    #[error("code of the action is missing")]
    MissingCode,
    /// A text attachment that is not UTF-8.
    #[error("code of the action is not UTF-8")]
    NotText,
    /// A limit is zero where that makes no sense.
    #[error("limit `{name}` of the action is 0")]
    ZeroLimit {
        /// Which.
        name: &'static str,
    },
}

impl ActionDocument {
    /// Reads a document.
    ///
    /// # Errors
    /// [`EntityError::WrongType`] for a document of another type, whatever else it holds;
    /// [`EntityError::Json`] or [`EntityError::Name`] for an unreadable one.
    pub fn parse(json: &[u8]) -> Result<Self, EntityError> {
        #[derive(Deserialize)]
        struct Envelope {
            #[serde(rename = "entityType", default)]
            entity_type: Option<String>,
        }
        let Envelope { entity_type } = serde_json::from_slice(json).map_err(EntityError::Json)?;
        if let Some(other) = entity_type.filter(|entity_type| entity_type != "action") {
            return Err(EntityError::WrongType(other));
        }
        let document: Self = serde_json::from_slice(json).map_err(EntityError::Json)?;
        document.qualified_name()?;
        Ok(document)
    }

    fn qualified_name(&self) -> Result<FullyQualifiedName, EntityError> {
        FullyQualifiedName::new(&*self.namespace, &*self.name).map_err(EntityError::Name)
    }

    /// The code as it is stored: in `code`, or in `jar` of very old documents.
    fn stored_code(&self) -> Option<StoredCode> {
        self.exec.code.clone().or_else(|| self.exec.jar.clone().map(StoredCode::Attachment))
    }

    /// The attachment on the action's own document that holds the code, if that is where it is. Fetch it and
    /// give it to [`ActionDocument::into_executable`].
    ///
    /// # Errors
    /// When the name cannot be read or names a store we do not have.
    pub fn attachment(&self) -> Result<Option<String>, EntityError> {
        match self.stored_code() {
            Some(StoredCode::Attachment(attachment)) => match parse_name(&attachment.attachment_name)? {
                AttachmentName::Document(name) => Ok(Some(name)),
                AttachmentName::Memory(_) => Ok(None),
                AttachmentName::External { scheme } => Err(EntityError::ExternalAttachment { scheme }),
            },
            _ => Ok(None),
        }
    }

    /// The action, ready to run. `attachment` is the content of [`ActionDocument::attachment`].
    ///
    /// # Errors
    /// See [`EntityError`].
    pub fn into_executable(
        self,
        attachment: Option<Vec<u8>>,
        context: &impl ReadContext,
    ) -> Result<ExecutableAction, EntityError> {
        if self.exec.kind == SEQUENCE {
            return Err(EntityError::NotExecutable);
        }
        let blackbox = self.exec.kind == BLACKBOX;
        let kind = if blackbox {
            BLACKBOX.to_owned()
        } else {
            context
                .resolve_kind(&self.exec.kind)
                .ok_or_else(|| EntityError::UnknownKind(self.exec.kind.chars().take(80).collect()))?
        };
        let image = match (&self.exec.image, blackbox) {
            (Some(image), true) => Some(
                image
                    .parse()
                    .map_err(|error: super::ImageNameError| EntityError::Image(error.to_string()))?,
            ),
            (None, true) => return Err(EntityError::Image("there is none".to_owned())),
            (_, false) => None,
        };
        let (code, binary) = read_code(self.stored_code(), self.exec.binary.unwrap_or(false), attachment)?;
        if code.is_none() && !blackbox {
            return Err(EntityError::MissingCode);
        }
        let limits = self.limits.resolve(&context.standard_limits());
        for (name, value) in [
            ("timeout", limits.timeout_ms),
            ("memory", limits.memory_mb),
            ("concurrency", limits.concurrency),
        ] {
            if value == 0 {
                return Err(EntityError::ZeroLimit { name });
            }
        }
        Ok(ExecutableAction {
            namespace: self.namespace,
            name: self.name,
            exec: Exec {
                kind,
                image,
                code,
                binary,
                main: self.exec.main.filter(|main| !main.trim().is_empty()),
            },
            parameters: self.parameters,
            limits,
            version: self.version,
            publish: self.publish,
            annotations: self.annotations,
            revision: self.rev,
        })
    }
}

fn parse_name(uri: &str) -> Result<AttachmentName, EntityError> {
    AttachmentName::parse(uri).map_err(EntityError::Attachment)
}

/// The code for `/init` and whether it is base-64. For inline text the latter is computed anew; for
/// attachments the document is believed, and decides how the bytes become text.
fn read_code(
    stored: Option<StoredCode>,
    binary: bool,
    fetched: Option<Vec<u8>>,
) -> Result<(Option<Code>, bool), EntityError> {
    let content = match stored {
        None => return Ok((None, binary)),
        Some(StoredCode::Inline(text)) => {
            let binary = is_base64(&text);
            return Ok((Some(Code::new(text)), binary));
        }
        Some(StoredCode::Attachment(attachment)) => match parse_name(&attachment.attachment_name)? {
            AttachmentName::Memory(content) => content,
            AttachmentName::Document(_) => fetched.ok_or(EntityError::MissingCode)?,
            AttachmentName::External { scheme } => return Err(EntityError::ExternalAttachment { scheme }),
        },
    };
    let text = if binary {
        use base64::Engine as _;
        base64::engine::general_purpose::STANDARD.encode(content)
    } else {
        String::from_utf8(content).map_err(|_| EntityError::NotText)?
    };
    Ok((Some(Code::new(text)), binary))
}

/// An action that can run.
///
/// Two are equal when every part but the revision is: a document written anew unchanged keeps its warm
/// containers, any change loses them (contract 6.2).
#[derive(Debug, Clone)]
pub struct ExecutableAction {
    /// Namespace, or namespace and package.
    pub namespace: String,
    /// The simple name.
    pub name: String,
    /// What to execute.
    pub exec: Exec,
    /// Parameters bound to the action.
    pub parameters: Parameters,
    /// Limits, complete.
    pub limits: ActionLimits,
    /// The version.
    pub version: String,
    /// Whether it is public.
    pub publish: bool,
    /// Annotations.
    pub annotations: Annotations,
    /// The revision of the document it was read from; not part of its value.
    pub revision: Option<String>,
}

impl ExecutableAction {
    /// `ns/[pkg/]name`.
    pub fn qualified_name(&self) -> String {
        format!("{}/{}", self.namespace, self.name)
    }
}

impl PartialEq for ExecutableAction {
    fn eq(&self, other: &Self) -> bool {
        let Self { namespace, name, exec, parameters, limits, version, publish, annotations, revision: _ } =
            self;
        *name == other.name
            && *namespace == other.namespace
            && *version == other.version
            && *limits == other.limits
            && *publish == other.publish
            && *exec == other.exec
            && *parameters == other.parameters
            && *annotations == other.annotations
    }
}

impl Eq for ExecutableAction {}
