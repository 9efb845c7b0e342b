//! Replaces arguments of a command that look like secrets with placeholders, since a configuration is shown and committed. In:
//! the arguments. Out: YAML scalars for the file, and the variables of the placeholders, so that the user can set them.
//! Limits: it knows common names and formats; a password that is given as a bare word is not recognised.

use crate::page::quoted;
use std::path::Path;

/// Parts of names whose values are secret.
const NAMES: [&str; 11] = [
    "password",
    "passwd",
    "passphrase",
    "secret",
    "token",
    "apikey",
    "api-key",
    "api_key",
    "access-key",
    "private-key",
    "credential",
];

/// Prefixes of well-known tokens.
const TOKENS: [&str; 9] = ["ghp_", "gho_", "ghs_", "github_pat_", "glpat-", "xoxb-", "xoxp-", "AKIA", "eyJ"];

/// The scalars, and the variables that replace secrets.
pub fn scalars(arguments: &[String]) -> (Vec<String>, Vec<String>) {
    let (mut scalars, mut variables) = (Vec::new(), Vec::new());
    let mut secret_follows: Option<String> = None;
    for (index, argument) in arguments.iter().enumerate() {
        let flag = secret_follows.take();
        let (name, value) = match argument.split_once('=') {
            Some((name, value)) if is_secret_name(name) && !value.contains(char::is_whitespace) => (Some(name), value),
            _ => (None, argument.as_str()),
        };
        let replacement = match (flag, name) {
            // The path of a file with a secret is not a secret; but a secret may start with a slash too, so the file must exist.
            _ if value.is_empty() || Path::new(value).is_absolute() && Path::new(value).exists() => None,
            (Some(flag), _) if !argument.starts_with('-') => Some((String::new(), variable(&flag))),
            (_, Some(name)) => Some((format!("{name}="), variable(name))),
            _ if argument.split_whitespace().any(holds_secret) => {
                Some((String::new(), format!("ARGUMENT_{}", index + 1)))
            }
            _ => None,
        };
        match replacement {
            Some((prefix, variable)) => {
                // The placeholder is appended inside the quotes, unescaped.
                let quoted = quoted(&prefix);
                let open = quoted.strip_suffix('"').unwrap_or(&quoted);
                scalars.push(format!("{open}${{{variable}:-unset}}\""));
                variables.push(variable);
            }
            None => scalars.push(quoted(argument)),
        }
        if argument.starts_with('-') && !argument.contains('=') && is_secret_name(argument) {
            secret_follows = Some(argument.clone());
        }
    }
    (scalars, variables)
}

fn is_secret_name(name: &str) -> bool {
    let name = name.to_ascii_lowercase();
    // The value of `--token-file` is a path.
    !name.ends_with("file") && !name.ends_with("path") && NAMES.iter().any(|part| name.contains(part))
}

/// Whether one word has credentials: in a URL, an authorization header, a token, or a pair with the name of a secret.
fn holds_secret(word: &str) -> bool {
    let word = word.trim_matches(|c| c == '"' || c == '\'');
    let has_userinfo = word.split_once("://").is_some_and(|(_, rest)| rest.contains('@'));
    // A data source name without a scheme, as of Go's MySQL driver: user:password@tcp(host:port)/name.
    let before_host = word.split_once('@').map_or("", |(user, _)| user);
    let is_source_name = before_host
        .split_once(':')
        .is_some_and(|(user, password)| !user.is_empty() && !password.is_empty() && !before_host.contains('/'));
    let lower = word.to_ascii_lowercase();
    let authorises = lower.starts_with("authorization:") || lower == "bearer" || lower.starts_with("x-api-key:");
    let is_token = word.len() >= 16 && TOKENS.iter().any(|start| word.starts_with(start));
    let is_pair = word.split_once('=').is_some_and(|(name, value)| is_secret_name(name) && !value.is_empty());
    has_userinfo || is_source_name || authorises || is_token || is_pair
}

fn variable(flag: &str) -> String {
    let name: String =
        flag.trim_start_matches('-').chars().map(|c| if c.is_ascii_alphanumeric() { c } else { '_' }).collect();
    let name = name.to_ascii_uppercase();
    if name.starts_with(|c: char| c.is_ascii_digit()) { format!("_{name}") } else { name }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(arguments: &[&str], expect: &str) {
        let arguments: Vec<String> = arguments.iter().map(ToString::to_string).collect();
        assert_eq!(scalars(&arguments).0.join(" "), expect);
    }

    #[test]
    fn secret_looking_arguments_become_placeholders() {
        check(&["./orders", "--port", "80"], r#""./orders" "--port" "80""#);
        check(&["a", "--db-password", "hunter2"], r#""a" "--db-password" "${DB_PASSWORD:-unset}""#);
        check(&["a", "--token=hunter2"], r#""a" "--token=${TOKEN:-unset}""#);
        check(&["env", "API_KEY=hunter2", "a"], r#""env" "API_KEY=${API_KEY:-unset}" "a""#);
        check(&["a", "postgres://me:hunter2@db/x"], r#""a" "${ARGUMENT_2:-unset}""#);
        check(&["curl", "-H", "Authorization: Bearer hunter2"], r#""curl" "-H" "${ARGUMENT_3:-unset}""#);
        check(&["sh", "-c", "TOKEN=hunter2 ./a"], r#""sh" "-c" "${ARGUMENT_3:-unset}""#);
        check(&["a", "--secret", "--verbose"], r#""a" "--secret" "--verbose""#);
        check(&["a", "--token-file", "/run/token"], r#""a" "--token-file" "/run/token""#);
        check(&["a", "--token", "/dev/null"], r#""a" "--token" "/dev/null""#);
        check(&["a", "--token", "/hunter2"], r#""a" "--token" "${TOKEN:-unset}""#);
        check(&["a", "--db=me:hunter2@tcp(db:3306)/x"], r#""a" "${ARGUMENT_2:-unset}""#);
        check(&["scp", "me@host:file"], r#""scp" "me@host:file""#);
        check(&["a", "ghp_0123456789abcdef"], r#""a" "${ARGUMENT_2:-unset}""#);
    }

    #[test]
    fn dollar_signs_and_quotes_are_escaped() {
        check(&["sh", "-c", "echo ${HOME} $$ \"x\"\n"], r#""sh" "-c" "echo $${HOME} $$$$ \"x\"\n""#);
    }
}
