//! What is said to an action container: bodies of `/init` and `/run` (contract 5.2, 5.3).

use serde::ser::SerializeMap;
use serde::{Serialize, Serializer};
use serde_json::{Map, Value};

use crate::entity::{ExecutableAction, annotation};
use crate::message::ActivationMessage;

/// The sentinel runtimes write to both streams after an activation (contract 5.8).
pub const SENTINEL: &str = "XXX_THE_END_OF_A_WHISK_ACTIVATION_XXX";

/// The arguments of an activation, parted by where they go.
#[derive(Debug, Clone, PartialEq)]
pub struct Arguments {
    /// To the environment at `/init`.
    pub env: Map<String, Value>,
    /// To `/run`: an object or an array.
    pub run: Value,
}

impl Arguments {
    /// Takes the arguments named in `init_args` out of `content`. An array passes whole; no content is an
    /// empty object.
    pub fn partition(content: Option<Value>, init_args: &[String]) -> Self {
        match content {
            None => Self { env: Map::new(), run: Value::Object(Map::new()) },
            Some(Value::Object(mut run)) => {
                // `shift_remove` keeps the order of what stays.
                let env = init_args.iter().filter_map(|name| run.shift_remove_entry(name)).collect();
                Self { env, run: Value::Object(run) }
            }
            Some(other) => Self { env: Map::new(), run: other },
        }
    }
}

/// One activation of one action, as it is told to the container.
#[derive(Debug, Clone, Copy)]
pub struct Invocation<'a> {
    /// What runs.
    pub action: &'a ExecutableAction,
    /// Who asked for it.
    pub message: &'a ActivationMessage,
}

impl<'a> Invocation<'a> {
    /// The body of `/init`. `env` is [`Arguments::env`]; `deadline_ms` is now plus the action's time limit, in
    /// milliseconds since the epoch.
    pub fn init_body(self, env: &Map<String, Value>, deadline_ms: u64) -> Vec<u8> {
        let exec = &self.action.exec;
        let mut variables = Map::new();
        for (name, value) in env {
            variables.insert(name.clone(), Value::String(text_of(value)));
        }
        for (name, value) in self.context(deadline_ms) {
            variables.insert(format!("__OW_{}", name.to_uppercase()), Value::String(value));
        }
        let init = Init {
            name: &self.action.name,
            main: exec.main(),
            code: exec.code.as_ref().map(|code| code.as_str()),
            binary: exec.binary,
            env: &variables,
        };
        to_bytes(&Body { value: &init, context: Vec::new() })
    }

    /// The body of `/run`. `arguments` is [`Arguments::run`]; `deadline_ms` as in [`Invocation::init_body`], but
    /// computed anew.
    pub fn run_body(self, arguments: &Value, deadline_ms: u64) -> Vec<u8> {
        to_bytes(&Body { value: arguments, context: self.context(deadline_ms) })
    }

    /// The members of `/run` besides `value`; with a prefix and in capitals, the `__OW_` variables of `/init`.
    /// All are texts, none is null: launchers export each as a variable. On a clash with a member of the
    /// auth key the member that OpenWhisk defines wins.
    fn context(self, deadline_ms: u64) -> Vec<(String, String)> {
        let message = self.message;
        let own = [
            ("namespace", message.user.namespace.name.clone()),
            ("action_name", format!("/{}", message.action.qualified())),
            ("action_version", message.action.version.clone().unwrap_or_default()),
            ("activation_id", message.activation_id.to_string()),
            ("transaction_id", message.transid.id().to_owned()),
            ("deadline", deadline_ms.to_string()),
        ];
        let is_own = |name: &str| {
            name.eq_ignore_ascii_case("value") || own.iter().any(|(own, _)| own.eq_ignore_ascii_case(name))
        };
        let mut context = Vec::with_capacity(own.len() + 1);
        if self.action.annotations.is_truthy(annotation::PROVIDE_API_KEY, true) {
            for (name, value) in message.user.authkey.iter().filter(|(name, _)| !is_own(name)) {
                context.push((name.clone(), text_of(value)));
            }
        }
        context.extend(own.map(|(name, value)| (name.to_owned(), value)));
        context
    }
}

/// A value as the text of a variable: null is empty, a text is itself, anything else is compact JSON.
fn text_of(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        other => other.to_string(),
    }
}

#[derive(Serialize)]
struct Init<'a> {
    name: &'a str,
    main: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    code: Option<&'a str>,
    binary: bool,
    env: &'a Map<String, Value>,
}

struct Body<'a, T> {
    value: &'a T,
    context: Vec<(String, String)>,
}

impl<T: Serialize> Serialize for Body<'_, T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut body = serializer.serialize_map(Some(1 + self.context.len()))?;
        body.serialize_entry("value", self.value)?;
        for (name, value) in &self.context {
            body.serialize_entry(name, value)?;
        }
        body.end()
    }
}

fn to_bytes(body: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(body).expect("maps with text keys always serialise")
}
