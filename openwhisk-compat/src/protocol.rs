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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::entity::{ActionDocument, ActionLimits, ReadContext};

    struct AnyKind;

    impl ReadContext for AnyKind {
        fn resolve_kind(&self, kind: &str) -> Option<String> {
            Some(kind.to_owned())
        }

        fn standard_limits(&self) -> ActionLimits {
            ActionLimits::STANDARD
        }
    }

    fn action(exec: Value, annotations: Value) -> ExecutableAction {
        let document = json!({"_id":"guest/hello","namespace":"guest","name":"hello","exec":exec,
            "version":"0.0.3","annotations":annotations});
        ActionDocument::parse(document.to_string().as_bytes())
            .and_then(|document| document.into_executable(None, &AnyKind))
            .expect("an action")
    }

    fn node() -> Value {
        json!({"kind":"nodejs:20","code":"function main(a){return {greeting:'hi '+a.name}}","binary":false})
    }

    fn message(changes: Value) -> ActivationMessage {
        let mut message = json!({"transid":["7bAz4Wf0Sp0vkZUmzkAfZCbmMk1OsQEn",1_711_531_200_123_u64],
         "action":{"path":"guest","name":"hello","version":"0.0.3"},
         "revision":"3-0c1ab2c3d4e5f60718293a4b5c6d7e8f",
         "user":{"subject":"guest","namespace":{"name":"guest","uuid":"23bc46b1-71f6-4ed5-8c54-816aa4f8c502"},
           "authkey":{"api_key":"23bc46b1:123zO3"},"rights":[],"limits":{}},
         "activationId":"4e6fb1d1a2a84a2fafb1d1a2a8ba2f5c",
         "rootControllerIndex":{"asString":"0","instanceType":"controller"},
         "blocking":true,"content":{"name":"world","SECRET":"s"},"initArgs":["SECRET"],"lockedArgs":{}});
        for (name, value) in changes.as_object().expect("an object") {
            message[name] = value.clone();
        }
        ActivationMessage::parse(message.to_string().as_bytes()).expect("a message")
    }

    fn bodies(action: &ExecutableAction, message: &ActivationMessage) -> (String, String) {
        let arguments = Arguments::partition(message.content.clone(), &message.init_args);
        let invocation = Invocation { action, message };
        let text = |body: Vec<u8>| String::from_utf8(body).expect("UTF-8");
        (
            text(invocation.init_body(&arguments.env, 1_711_531_260_200)),
            text(invocation.run_body(&arguments.run, 1_711_531_260_250)),
        )
    }

    #[test]
    fn bodies_are_the_contract_s() {
        let (init, run) =
            bodies(&action(node(), json!([{"key":"provide-api-key","value":true}])), &message(json!({})));
        assert_eq!(
            init,
            concat!(
                r#"{"value":{"name":"hello","main":"main","code":"function main(a){return {greeting:'hi '+a.name}}","binary":false,"#,
                r#""env":{"SECRET":"s","__OW_API_KEY":"23bc46b1:123zO3","__OW_NAMESPACE":"guest","#,
                r#""__OW_ACTION_NAME":"/guest/hello","__OW_ACTION_VERSION":"0.0.3","#,
                r#""__OW_ACTIVATION_ID":"4e6fb1d1a2a84a2fafb1d1a2a8ba2f5c","#,
                r#""__OW_TRANSACTION_ID":"7bAz4Wf0Sp0vkZUmzkAfZCbmMk1OsQEn","__OW_DEADLINE":"1711531260200"}}}"#
            )
        );
        assert_eq!(
            run,
            concat!(
                r#"{"value":{"name":"world"},"api_key":"23bc46b1:123zO3","namespace":"guest","action_name":"/guest/hello","#,
                r#""action_version":"0.0.3","activation_id":"4e6fb1d1a2a84a2fafb1d1a2a8ba2f5c","#,
                r#""transaction_id":"7bAz4Wf0Sp0vkZUmzkAfZCbmMk1OsQEn","deadline":"1711531260250"}"#
            )
        );
    }

    #[test]
    fn the_api_key_needs_a_truthy_or_absent_annotation() {
        for (annotations, given) in [
            (json!([]), true),
            (json!([{"key":"provide-api-key","value":true}]), true),
            (json!([{"key":"provide-api-key","value":"yes"}]), true),
            (json!([{"key":"provide-api-key","value":false}]), false),
            (json!([{"key":"provide-api-key","value":null}]), false),
            (json!([{"key":"provide-api-key","value":0}]), false),
        ] {
            let (init, run) = bodies(&action(node(), annotations.clone()), &message(json!({})));
            assert_eq!(init.contains("__OW_API_KEY"), given, "{annotations}");
            assert_eq!(run.contains("api_key"), given, "{annotations}");
        }
    }

    #[test]
    fn variables_are_texts_and_ours_win() {
        let (init, _) = bodies(
            &action(node(), json!([])),
            &message(json!({
                "content":{"N":null,"S":"s","B":true,"I":7,"F":1.5,"O":{"a":"ä","b":[1,2]},"A":[1,"x"],
                    "__OW_NAMESPACE":"forged","kept":1},
                "initArgs":["O","I","B","S","N","A","F","__OW_NAMESPACE","missing"]
            })),
        );
        let init: Value = serde_json::from_str(&init).expect("JSON");
        let env = &init["value"]["env"];
        for (name, expected) in [
            ("N", ""),
            ("S", "s"),
            ("B", "true"),
            ("I", "7"),
            ("F", "1.5"),
            ("O", r#"{"a":"ä","b":[1,2]}"#),
            ("A", r#"[1,"x"]"#),
            ("__OW_NAMESPACE", "guest"),
        ] {
            assert_eq!(env[name], json!(expected), "{name}");
        }
        assert_eq!(env.get("missing"), None);
        assert_eq!(env.get("kept"), None);
        assert!(env.as_object().expect("an object").values().all(Value::is_string));
    }

    #[test]
    fn nothing_in_the_context_is_null() {
        let (init, run) = bodies(
            &action(node(), json!([])),
            &message(json!({
                "action":{"path":"guest/p1","name":"inpkg","binding":"guest/b1"},
                "content":null,
                "user":{"subject":"guest","namespace":{"name":"guest","uuid":"u"},
                    "authkey":{"api_key":"k","extra":null,"value":"forged","deadline":1,"n":{"a":1}}}
            })),
        );
        let run: Value = serde_json::from_str(&run).expect("JSON");
        assert_eq!(
            run,
            json!({"value":{},"api_key":"k","extra":"","n":"{\"a\":1}","namespace":"guest",
                "action_name":"/guest/p1/inpkg","action_version":"","activation_id":"4e6fb1d1a2a84a2fafb1d1a2a8ba2f5c",
                "transaction_id":"7bAz4Wf0Sp0vkZUmzkAfZCbmMk1OsQEn","deadline":"1711531260250"})
        );
        let init: Value = serde_json::from_str(&init).expect("JSON");
        assert_eq!(init["value"]["env"]["__OW_ACTION_VERSION"], json!(""));
        assert_eq!(init["value"]["env"]["__OW_EXTRA"], json!(""));
    }

    #[test]
    fn arrays_pass_whole() {
        let arguments = Arguments::partition(Some(json!([1, 2])), &["0".to_owned()]);
        assert_eq!(arguments, Arguments { env: Map::new(), run: json!([1, 2]) });
    }

    #[test]
    fn what_stays_keeps_its_order() {
        let arguments = Arguments::partition(Some(json!({"z":1,"b":2,"a":3,"m":4})), &["b".to_owned()]);
        assert_eq!(arguments.run.to_string(), r#"{"z":1,"a":3,"m":4}"#);
    }

    #[test]
    fn code_is_left_out_when_the_image_holds_it() {
        let blackbox =
            action(json!({"kind":"blackbox","image":"openwhisk/dockerskeleton","binary":false}), json!([]));
        let (init, _) = bodies(&blackbox, &message(json!({})));
        assert!(
            init.starts_with(r#"{"value":{"name":"hello","main":"main","binary":false,"env":{"#),
            "{init}"
        );
    }
}
