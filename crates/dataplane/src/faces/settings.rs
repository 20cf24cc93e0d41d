//! The trace and logging extensions: settings can be read; what cannot be changed here is refused, not ignored.

use serde_json::{Map, Value, json};

use super::parse;
use crate::dataplane::Dataplane;
use crate::error::{Error, Result};
use crate::proto::log_settings_request::setting_value::ParameterChoice as Asked;
use crate::proto::log_settings_response::setting_value::ParameterChoice as Told;
use crate::proto::{
    self, LogSettingsRequest, LogSettingsResponse, TraceSettingRequest, TraceSettingResponse,
};

/// As far as Triton's settings can say it: nothing is traced.
fn trace_settings() -> Value {
    json!({
        "trace_file": "", "trace_level": ["OFF"], "trace_rate": "1000", "trace_count": "-1", "log_frequency": "0",
        "trace_mode": "triton",
    })
}

/// As far as Triton's settings can say it: levels are chosen when the server starts.
fn log_settings() -> Value {
    json!({
        "log_file": "", "log_info": true, "log_warning": true, "log_error": true, "log_verbose_level": 0,
        "log_format": "default",
    })
}

/// Accepts a change that changes nothing (`null` means "back to the default").
fn check(kind: &str, current: &Value, asked: &Map<String, Value>) -> Result<()> {
    for (key, value) in asked {
        let Some(now) = current.get(key) else {
            return Err(Error::invalid(format!("there is no {kind} setting '{key}'")));
        };
        if key == "trace_file" || key == "log_file" {
            return Err(Error::unsupported(format!(
                "{kind} file location can not be updated through network protocol"
            )));
        }
        if !value.is_null() && value != now {
            return Err(Error::unsupported(format!(
                "{kind} setting '{key}' cannot be changed at run time, it is {now}"
            )));
        }
    }
    Ok(())
}

fn answer(kind: &str, current: &Value, body: &[u8], is_change: bool) -> Result<String> {
    if is_change && let Value::Object(asked) = parse(body)? {
        check(kind, current, &asked)?;
    }
    Ok(current.to_string())
}

/// `/v2/trace/setting`, and that of a model.
pub(super) fn trace_json(body: &[u8], is_change: bool) -> Result<String> {
    answer("trace", &trace_settings(), body, is_change)
}

/// `/v2/logging`.
pub(super) fn logging_json(body: &[u8], is_change: bool) -> Result<String> {
    answer("log", &log_settings(), body, is_change)
}

fn entries(settings: Value) -> impl Iterator<Item = (String, Value)> {
    let Value::Object(settings) = settings else { unreachable!("settings are objects") };
    settings.into_iter()
}

/// `TraceSetting`.
pub(super) fn trace(dataplane: &Dataplane, request: &TraceSettingRequest) -> Result<TraceSettingResponse> {
    if !request.model_name.is_empty() {
        dataplane.model(&request.model_name, "")?;
    }
    let asked = request.settings.iter().map(|(key, setting)| {
        let value = match setting.value.as_slice() {
            [] => Value::Null,
            [value] if key != "trace_level" => value.as_str().into(),
            values => values.into(),
        };
        (key.clone(), value)
    });
    check("trace", &trace_settings(), &asked.collect())?;
    let settings = entries(trace_settings()).map(|(key, value)| {
        let value = match value {
            Value::Array(values) => values.iter().filter_map(Value::as_str).map(ToOwned::to_owned).collect(),
            value => value.as_str().map(ToOwned::to_owned).into_iter().collect(),
        };
        (key, proto::trace_setting_response::SettingValue { value })
    });
    Ok(TraceSettingResponse { settings: settings.collect() })
}

/// `LogSettings`.
pub(super) fn logging(request: &LogSettingsRequest) -> Result<LogSettingsResponse> {
    let asked = request.settings.iter().map(|(key, setting)| {
        let value = match &setting.parameter_choice {
            None => Value::Null,
            Some(Asked::BoolParam(value)) => (*value).into(),
            Some(Asked::Uint32Param(value)) => (*value).into(),
            Some(Asked::StringParam(value)) => value.as_str().into(),
        };
        (key.clone(), value)
    });
    check("log", &log_settings(), &asked.collect())?;
    let settings = entries(log_settings()).map(|(key, value)| {
        let parameter_choice = match value {
            Value::Bool(value) => Told::BoolParam(value),
            Value::String(value) => Told::StringParam(value),
            other => Told::Uint32Param(other.as_u64().unwrap_or_default() as u32),
        };
        (key, proto::log_settings_response::SettingValue { parameter_choice: Some(parameter_choice) })
    });
    Ok(LogSettingsResponse { settings: settings.collect() })
}
