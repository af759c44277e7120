//! One activation in one container (contract 5): `/init`, `/run`, what is answered when, logs.

use std::sync::Arc;
use std::time::Duration;

use openwhisk_compat::entity::{ActivationResponse, StatusCode};
use openwhisk_compat::logs::{LogDeadlines, LogMode, file_lines};
use openwhisk_compat::manifest::RuntimesManifest;
use openwhisk_compat::protocol::Invocation;
use openwhisk_compat::response::{
    CallLimits, ContainerReply, Fallback, init_response, run_response, timed_out,
};
use openwhisk_compat::size::ByteSize;
use tokio_util::sync::CancellationToken;

use super::record::{Times, executed, now_ms};
use super::user_logs::UserLogs;
use super::{Activation, Answers, AtOnce};
use crate::container::{Answered, CreateError, Created, Initialised, Lease, LogRequest, Request};
use crate::errors::chain;
use crate::metrics::{Metrics, Step};
use crate::pool::JobEnd;

/// What executing needs to know of the configuration.
#[derive(Debug, Clone)]
pub struct Settings {
    /// `activation.payload.max`: the longest answer of `/init`, and of `/run` unless the user's
    /// limit differs.
    pub payload_bytes_max: u64,
    /// `activation.payload.truncation`: how much of a longer one is kept.
    pub truncation_bytes: u64,
    /// Whether the log store collects in band (contract 5.8); if not, records have no logs.
    pub collect_logs: bool,
    /// Which runtimes mark the end of their output.
    pub manifest: Arc<RuntimesManifest>,
    /// Which failed activations get a line in the invoker's own log.
    pub log_errors: LogErrors,
}

/// `container-proxy.log-activation-errors`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LogErrors {
    /// Status 1.
    pub application: bool,
    /// Status 2.
    pub developer: bool,
    /// Status 3.
    pub whisk: bool,
}

impl Default for LogErrors {
    /// Upstream's defaults (contract 1.3).
    fn default() -> Self {
        Self { application: false, developer: false, whisk: true }
    }
}

/// Executes activations.
pub struct Executor {
    settings: Settings,
    answers: Arc<Answers>,
    metrics: Arc<Metrics>,
    /// The file log store, if that is the one in use.
    user_logs: Option<UserLogs>,
    /// Cancelled when the time for draining is over: what still runs then is answered at once.
    cut_off: CancellationToken,
}

/// When `/init` ran: start and end, milliseconds since the epoch.
pub type InitTimes = (u64, u64);

/// `/init` did not make the container ready for `/run`.
#[derive(Debug)]
pub enum InitFailed {
    /// The activation was answered with this response.
    Answered(Box<ActivationResponse>),
    /// The container shuts down (503): the job belongs elsewhere.
    Returned,
}

impl Executor {
    /// Puts the parts together.
    #[must_use]
    pub fn new(
        settings: Settings,
        answers: Arc<Answers>,
        metrics: Arc<Metrics>,
        user_logs: Option<UserLogs>,
        cut_off: CancellationToken,
    ) -> Self {
        Self { settings, answers, metrics, user_logs, cut_off }
    }

    /// Answers an activation whose container could not be created (prov-1 to prov-3).
    pub fn not_created(&self, activation: &Activation, error: &CreateError) -> ActivationResponse {
        let message = &activation.message;
        tracing::error!(
            tid = message.transid.id(),
            activation = message.activation_id.as_str(),
            error = %chain(error),
            "no container"
        );
        let response = match error {
            CreateError::Provision { .. } => Fallback::NotProvisioned,
            CreateError::ImagePull { image, .. } => Fallback::ImageNotPulled(image.clone()),
            CreateError::CommandNotFound { image, .. } => Fallback::NoExecutable(image.clone()),
        }
        .response();
        let record = executed(message, &activation.action, response.clone(), Times::at(now_ms()), false);
        self.ended(activation, &response);
        self.answers.at_once(activation.key, &activation.asker(), record, AtOnce::Combined);
        response
    }

    /// Answers an activation whose execution broke off in a way that should not be (contract 5.6, "any").
    pub fn broke_off(&self, activation: &Activation) -> ActivationResponse {
        self.give_up(activation, Fallback::Unexpected.response(), Times::at(now_ms()))
    }

    /// Answers an activation that is not waited for any longer, because the process ends.
    fn cut_off(&self, activation: &Activation, times: Times) -> ActivationResponse {
        let response = ActivationResponse::error(StatusCode::WhiskError, CUT_OFF, None);
        self.give_up(activation, response, times)
    }

    fn give_up(
        &self,
        activation: &Activation,
        response: ActivationResponse,
        times: Times,
    ) -> ActivationResponse {
        let record = executed(&activation.message, &activation.action, response.clone(), times, false);
        self.ended(activation, &response);
        self.answers.at_once(activation.key, &activation.asker(), record, AtOnce::Combined);
        response
    }

    /// `/init`. A failed one is answered, logs collected, before this returns.
    ///
    /// # Errors
    /// See [`InitFailed`]; the container has been given up then.
    pub async fn init(
        &self,
        activation: &Activation,
        container: Created,
    ) -> Result<(Initialised, InitTimes), InitFailed> {
        let Activation { message, action, arguments, .. } = activation;
        let limits = CallLimits {
            timeout_ms: action.limits.timeout_ms,
            allowed_bytes: self.settings.payload_bytes_max,
        };
        let start = now_ms();
        let invocation = Invocation { action, message };
        let body = invocation.init_body(&arguments.env, start + u64::from(limits.timeout_ms));
        let span = self.metrics.start(Step::ActivationInit);
        let end = tokio::select! {
            end = container.init(self.request(&body, &limits, None)) => end,
            () = self.cut_off.cancelled() => {
                span.failed();
                let times = Times { init: Some((start, now_ms())), run: None };
                return Err(InitFailed::Answered(Box::new(self.cut_off(activation, times))));
            }
        };
        self.metrics.client_retries(end.retries);
        let elapsed_ms = whole_ms(end.elapsed);
        let init = (start, start + elapsed_ms);
        if end.reply == ContainerReply::ShuttingDown && elapsed_ms < u64::from(limits.timeout_ms) {
            span.failed();
            return Err(InitFailed::Returned);
        }
        let verdict = init_response(&end.reply, elapsed_ms, &limits);
        span.ended(verdict.is_ok());
        let response = match (verdict, end.container) {
            (Ok(()), Ok(container)) => return Ok((container, init)),
            // A good answer that came too late, or a bad one.
            (Err(response), container) => {
                let answered = match container {
                    Ok(container) => container.into_answered(),
                    Err(container) => container.into_answered(),
                };
                let late = timed_out(&end.reply, elapsed_ms, &limits);
                let times = Times { init: Some(init), run: None };
                self.answer(activation, response.clone(), times, late, answered).await;
                response
            }
            (Ok(()), Err(_)) => self.broke_off(activation),
        };
        Err(InitFailed::Answered(Box::new(response)))
    }

    /// `/run` and everything up to the point where the container is free of the request.
    ///
    /// `found_at_rest`: the container was idle or suspended when the job came to it.
    /// `init`: when `/init` ran, if it ran for this activation.
    /// `answered` is called when the response exists and the container is to be kept: what follows takes
    /// no longer than the output needs to arrive.
    pub async fn run(
        &self,
        activation: &Activation,
        lease: Lease,
        found_at_rest: bool,
        init: Option<InitTimes>,
        answered: impl FnOnce(),
    ) -> JobEnd {
        let Activation { message, action, arguments, key } = activation;
        let limits = CallLimits {
            timeout_ms: action.limits.timeout_ms,
            allowed_bytes: message
                .user
                .limits
                .max_payload_size
                .map_or(self.settings.payload_bytes_max, ByteSize::bytes),
        };
        if let Err(error) = self.answers.journal().started(*key) {
            tracing::warn!(tid = message.transid.id(), error = %chain(&error), "start is not noted");
        }
        let start = now_ms();
        let invocation = Invocation { action, message };
        let body = invocation.run_body(&arguments.run, start + u64::from(limits.timeout_ms));
        let span = self.metrics.start(Step::ActivationRun);
        let end = tokio::select! {
            end = lease.run(self.request(&body, &limits, message.user.limits.truncation_size), found_at_rest) => end,
            () = self.cut_off.cancelled() => {
                span.failed();
                self.cut_off(activation, Times { init, run: Some((start, now_ms())) });
                return JobEnd::Failed;
            }
        };
        let elapsed_ms = whole_ms(end.elapsed);
        let late = timed_out(&end.reply, elapsed_ms, &limits);
        if end.reply == ContainerReply::ShuttingDown && !late {
            span.failed();
            self.metrics.container_health_failed("warm");
            end.answered.end().await;
            return JobEnd::Returned;
        }
        let response = run_response(end.reply, elapsed_ms, &limits);
        span.ended(!response.is_container_failure());
        let times = Times { init, run: Some((start, start + elapsed_ms)) };
        let failed = response.is_container_failure();
        if !failed {
            answered();
        }
        let logs_failed = self.answer(activation, response, times, late, end.answered).await;
        if failed || logs_failed { JobEnd::Failed } else { JobEnd::Kept }
    }

    /// `truncation`: how much the user lets stand of an answer that is too long.
    fn request<'a>(&self, body: &'a [u8], limits: &CallLimits, truncation: Option<ByteSize>) -> Request<'a> {
        Request {
            body,
            timeout: Duration::from_millis(u64::from(limits.timeout_ms)),
            answer_bytes_max: limits.allowed_bytes,
            truncated_bytes: truncation.map_or(self.settings.truncation_bytes, ByteSize::bytes),
        }
    }

    /// Acknowledges, collects logs, and ends the lease: the table of contract 2.6. True if the logs
    /// could not be collected, which costs the container its life.
    async fn answer(
        &self,
        activation: &Activation,
        response: ActivationResponse,
        times: Times,
        late: bool,
        mut answered: Answered,
    ) -> bool {
        let Activation { message, action, key, .. } = activation;
        let developer_error = response.status_code == StatusCode::DeveloperError;
        self.ended(activation, &response);
        let record = Arc::new(executed(message, action, response, times, late));
        let asker = activation.asker();
        let logs_mb = action.limits.logs_mb;
        if logs_mb == 0 || !self.settings.collect_logs {
            self.answers.last(*key, &asker, record, Vec::new(), false);
            answered.end().await;
            return false;
        }
        let result = asker.blocking.then(|| self.answers.result(&asker, &record));
        let waits = !developer_error && self.settings.manifest.has_sentinels(&action.exec);
        let request = LogRequest {
            limit: ByteSize::from_mb(logs_mb),
            mode: if waits { LogMode::Wait } else { LogMode::NoWait },
            deadlines: LogDeadlines::for_limit(logs_mb),
            developer_error,
        };
        let span = self.metrics.start(Step::CollectLogs);
        let after_result = result.is_some();
        let delivered = async {
            if let Some(result) = result {
                result.await;
            }
        };
        let (logs, ()) = tokio::join!(answered.collect_logs(&request), delivered);
        span.ended(logs.failure.is_none());
        if let Some(failure) = logs.failure {
            tracing::info!(
                tid = message.transid.id(),
                activation = message.activation_id.as_str(),
                ?failure,
                "logs are not complete, the container goes"
            );
        }
        if let Some(user_logs) = &self.user_logs {
            let namespace_id = &message.user.namespace.uuid;
            user_logs.write(file_lines(&logs.lines, &record, &message.action.qualified(), namespace_id));
        }
        self.answers.last(*key, &asker, record, logs.formatted(), after_result);
        answered.end().await;
        logs.failure.is_some()
    }

    /// Counts an end, and logs it if it is one of those that are to be logged.
    fn ended(&self, activation: &Activation, response: &ActivationResponse) {
        let (status, logged) = match response.status_code {
            StatusCode::Success => ("success", false),
            StatusCode::ApplicationError => ("application_error", self.settings.log_errors.application),
            StatusCode::DeveloperError => ("developer_error", self.settings.log_errors.developer),
            StatusCode::WhiskError => ("whisk_error", self.settings.log_errors.whisk),
        };
        self.metrics.activation_ended(status);
        if logged {
            let message = &activation.message;
            tracing::warn!(
                tid = message.transid.id(),
                activation = message.activation_id.as_str(),
                action = %message.action,
                status,
                "activation failed"
            );
        }
    }
}

/// The answer to what was still running when the time for draining was over.
const CUT_OFF: &str = "The invoker shut down while the action was running.";

fn whole_ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
