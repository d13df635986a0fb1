//! The proxies that the environment names, as in curl.

use url::{Host, Url};

use super::super::error::GetError;

/// The proxies of this process.
#[derive(Debug, Default)]
pub(super) struct Proxies {
    http: Option<String>,
    https: Option<String>,
    /// Lower-case host names and addresses, without a leading dot.
    direct: Vec<String>,
}

impl Proxies {
    /// Reads the environment. `HTTP_PROXY` in capitals is ignored, because a CGI program gets it
    /// from the `Proxy` header of a request (<https://httpoxy.org>).
    pub(super) fn from_environment() -> Self {
        Self::new(|name| std::env::var(name).ok().filter(|value| !value.is_empty()))
    }

    fn new(variable: impl Fn(&str) -> Option<String>) -> Self {
        let either = |lower: &str| variable(lower).or_else(|| variable(&lower.to_uppercase()));
        let all = either("all_proxy");
        let direct = either("no_proxy").unwrap_or_default();
        Self {
            http: variable("http_proxy").or_else(|| all.clone()),
            https: either("https_proxy").or(all),
            direct: direct
                .split([',', ' '])
                .map(|word| word.trim().trim_start_matches('.').to_lowercase())
                .filter(|word| !word.is_empty())
                .collect(),
        }
    }

    /// Returns the proxy for a URL, if there is one.
    ///
    /// # Errors
    ///
    /// The variable does not hold the URL of an HTTP proxy.
    pub(super) fn of(&self, url: &Url) -> Result<Option<Url>, GetError> {
        let proxy = match url.scheme() {
            "https" => &self.https,
            _ => &self.http,
        };
        let Some(proxy) = proxy.as_ref().filter(|_| !self.is_direct(url)) else {
            return Ok(None);
        };
        // As in curl, the scheme may be missing.
        let text = if proxy.contains("://") {
            proxy.clone()
        } else {
            format!("http://{proxy}")
        };
        // The text of an unusable proxy is not repeated, because it may hold a password.
        let unusable = |why: &str| GetError::Proxy {
            proxy: "from the environment".to_owned(),
            why: why.to_owned(),
        };
        let parsed = Url::parse(&text).map_err(|_| unusable("it is not a URL"))?;
        if parsed.scheme() != "http" || parsed.host_str().is_none() {
            return Err(unusable("only http:// proxies are supported"));
        }
        Ok(Some(parsed))
    }

    fn is_direct(&self, url: &Url) -> bool {
        let host = match url.host() {
            Some(Host::Ipv6(address)) => address.to_string(),
            Some(host) => host.to_string().to_lowercase(),
            None => return false,
        };
        let port = url.port_or_known_default().unwrap_or_default();
        self.direct.iter().any(|word| {
            let (name, only_port) = match word.rsplit_once(':') {
                // An IPv6 address has more than one colon.
                Some((name, digits)) if !name.contains(':') || name.ends_with(']') => {
                    (name, digits.parse::<u16>().ok())
                }
                _ => (word.as_str(), None),
            };
            let name = name.trim_matches(['[', ']']);
            let is_host = host == name
                || host
                    .strip_suffix(name)
                    .is_some_and(|rest| rest.ends_with('.') && url.domain().is_some());
            name == "*" || (is_host && only_port.is_none_or(|only| only == port))
        })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    fn proxy(variables: &[(&str, &str)], url: &str) -> Option<String> {
        let proxies = Proxies::new(|name| {
            let found = variables.iter().find(|(variable, _)| *variable == name);
            found.map(|(_, value)| (*value).to_owned())
        });
        let found = proxies.of(&Url::parse(url).unwrap()).unwrap();
        found.map(|proxy| proxy.to_string())
    }

    #[test]
    fn each_scheme_has_its_variables() {
        let found = Some("http://p:1/".to_owned());
        for variable in ["http_proxy", "all_proxy", "ALL_PROXY"] {
            assert_eq!(proxy(&[(variable, "http://p:1")], "http://a/"), found);
        }
        for variable in ["https_proxy", "HTTPS_PROXY", "all_proxy", "ALL_PROXY"] {
            assert_eq!(proxy(&[(variable, "p:1")], "https://a/"), found);
        }
        assert_eq!(proxy(&[("HTTP_PROXY", "http://p:1")], "http://a/"), None);
        assert_eq!(proxy(&[("http_proxy", "http://p:1")], "https://a/"), None);
    }

    #[test]
    fn hosts_in_no_proxy_are_reached_directly() {
        let is_direct = |no_proxy: &str, url: &str| {
            proxy(&[("all_proxy", "http://p:1"), ("no_proxy", no_proxy)], url).is_none()
        };
        for (no_proxy, url) in [
            ("*", "http://a/"),
            ("a.b", "http://a.b/"),
            ("a.b", "http://x.a.b/"),
            (".a.b", "http://A.B/"),
            ("x, a.b:8080", "http://a.b:8080/"),
            ("127.0.0.1", "http://127.0.0.1:99/"),
            ("::1", "http://[::1]/"),
            ("[::1]:80", "http://[::1]/"),
        ] {
            assert!(is_direct(no_proxy, url), "{no_proxy} {url}");
        }
        for (no_proxy, url) in [
            ("", "http://a/"),
            ("a.b", "http://xa.b/"),
            ("a.b:8080", "http://a.b/"),
            ("0.0.1", "http://127.0.0.1/"),
        ] {
            assert!(!is_direct(no_proxy, url), "{no_proxy} {url}");
        }
    }

    #[test]
    fn other_kinds_of_proxies_are_refused_without_their_password() {
        let proxies = Proxies::new(|_| Some("socks5://user:secret@p:1".to_owned()));
        let error = Proxies {
            direct: vec![],
            ..proxies
        }
        .of(&Url::parse("http://a/").unwrap())
        .unwrap_err();
        assert!(!error.to_string().contains("secret"), "{error}");
    }
}
