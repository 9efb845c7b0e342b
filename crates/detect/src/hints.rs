//! Hints in an app's environment. In: its variables. Out: port numbers, hosts of OTLP endpoints, and otherwise only names. All
//! other values are discarded here, so that no later step can show them. Limits: `HINTS_MAX` hints.

/// What may be shown of a variable.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Hint {
    pub name: String,
    /// Only a port's number or an endpoint's scheme, host and port.
    pub value: Option<String>,
}

const HINTS_MAX: usize = 24;

/// Prefixes of names that refer to telemetry.
const TELEMETRY: [&str; 9] =
    ["OTEL_", "DD_", "STATSD_", "PROMETHEUS_", "PROM_", "METRICS_", "LOG_", "LOGGING_", "JAEGER_"];

pub fn of_variables(variables: &[(String, String)]) -> Vec<Hint> {
    let mut hints: Vec<Hint> = variables.iter().filter_map(|(name, value)| hint(name, value)).collect();
    hints.sort_by(|a, b| a.name.cmp(&b.name));
    hints.dedup();
    // Hints with values first, since choices depend on them.
    hints.sort_by_key(|hint| hint.value.is_none());
    hints.truncate(HINTS_MAX);
    hints
}

/// The ports that variables contain, the likeliest variable first.
pub fn ports(hints: &[Hint]) -> Vec<(&str, u16)> {
    let numbers = hints.iter().filter_map(|hint| Some((hint.name.as_str(), hint.value.as_ref()?.parse().ok()?)));
    let mut ports: Vec<(&str, u16)> = numbers.collect();
    ports.sort_by_key(|(name, _)| *name != "PORT");
    ports
}

fn hint(name: &str, value: &str) -> Option<Hint> {
    let is_name = |c: char| c.is_ascii_uppercase() || c.is_ascii_digit() || c == '_';
    if name.is_empty() || name.len() > 64 || !name.chars().all(is_name) {
        return None;
    }
    let shown = |value: Option<String>| Some(Hint { name: name.into(), value });
    // Kubernetes sets `_SERVICE_PORT` for every service of the namespace; these variables are not the app's.
    let is_port = name == "PORT" || name.ends_with("_PORT") && !name.ends_with("_SERVICE_PORT");
    if is_port {
        let number = value.trim().parse::<u16>().ok().filter(|number| *number > 0)?;
        return shown(Some(number.to_string()));
    }
    if name.starts_with("OTEL_") && name.ends_with("_ENDPOINT") {
        return shown(endpoint(value));
    }
    TELEMETRY.iter().any(|start| name.starts_with(start)).then(|| shown(None)).flatten()
}

/// Scheme, host and port. A path or a query may contain a token, so both are dropped.
fn endpoint(value: &str) -> Option<String> {
    let (scheme, rest) = value.trim().split_once("://")?;
    let (authority, after) = rest.split_at(rest.find(['/', '?', '#', '\\']).unwrap_or(rest.len()));
    // With an `@` after the authority, it is uncertain which part is the host and which the password.
    if after.contains('@') || !matches!(scheme, "http" | "https" | "grpc") {
        return None;
    }
    let host = authority.rsplit('@').next()?;
    let is_host = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | ':' | '[' | ']');
    (!host.is_empty() && host.len() <= 128 && host.chars().all(is_host)).then(|| format!("{scheme}://{host}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(name: &str, value: &str, expect: Option<Option<&str>>) {
        let seen = hint(name, value);
        assert_eq!(seen.as_ref().map(|hint| hint.value.as_deref()), expect, "{name}={value}");
    }

    #[test]
    fn only_ports_and_endpoint_hosts_have_values() {
        check("PORT", "8080", Some(Some("8080")));
        check("HTTP_PORT", " 80 ", Some(Some("80")));
        check("PORT", "hunter2", None);
        check("PORT", "0", None);
        check("REDIS_PORT", "tcp://10.0.0.1:6379", None);
        check("REDIS_SERVICE_PORT", "6379", None);
        let endpoint = "OTEL_EXPORTER_OTLP_ENDPOINT";
        check(endpoint, "https://me:hunter2@otel:4317/hunter2?token=hunter2", Some(Some("https://otel:4317")));
        check(endpoint, "http://[::1]:4318", Some(Some("http://[::1]:4318")));
        check(endpoint, "http://me:hun/ter2@otel:4317", Some(None));
        check(endpoint, "http://me:hun?ter2@otel", Some(None));
        check(endpoint, "hunter2", Some(None));
        check("OTEL_EXPORTER_OTLP_HEADERS", "authorization=hunter2", Some(None));
        check("LOG_LEVEL", "hunter2", Some(None));
        check("DATABASE_URL", "postgres://me:hunter2@db/x", None);
        check("LOG_\nevil: yes", "x", None);
    }

    #[test]
    fn variable_port_is_listed_first() {
        let variables = [("ADMIN_PORT", "9000"), ("LOG_LEVEL", "debug"), ("PORT", "8080")];
        let variables = variables.map(|(name, value)| (name.to_string(), value.to_string()));
        assert_eq!(ports(&of_variables(&variables)), [("PORT", 8080), ("ADMIN_PORT", 9000)]);
    }
}
