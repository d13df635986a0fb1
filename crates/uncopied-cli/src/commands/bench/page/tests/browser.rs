//! Chromium without a window, controlled over pipes with the DevTools protocol.

use std::io::{BufRead as _, BufReader, PipeReader, PipeWriter, Write as _, pipe};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::Duration;

use command_fds::{CommandFdExt as _, FdMapping};
use serde_json::{Value, json};

/// How often and at which intervals to look whether Chromium has exited, before it is killed.
const EXIT_MAX_POLLS: u32 = 200;
const EXIT_POLL_INTERVAL: Duration = Duration::from_millis(50);

/// Whether Chromium is installed.
pub(super) fn is_installed() -> bool {
    let version = Command::new("chromium").arg("--version").output();
    version.is_ok_and(|output| output.status.success())
}

/// A running Chromium with one page.
pub(super) struct Browser {
    process: Child,
    commands: PipeWriter,
    messages: BufReader<PipeReader>,
    last_id: u64,
    session: Option<Value>,
    /// The events since the page was opened.
    events: Vec<Value>,
    /// The profile is removed after the process has ended.
    _profile: tempfile::TempDir,
}

impl Browser {
    /// Starts Chromium with an empty profile.
    pub(super) fn start() -> Self {
        let profile = tempfile::tempdir().unwrap();
        let (child_reads, commands) = pipe().unwrap();
        let (messages, child_writes) = pipe().unwrap();
        let mut command = Command::new("chromium");
        command
            .args([
                "--headless",
                "--no-sandbox",
                "--disable-gpu",
                "--no-first-run",
            ])
            .args([
                "--disable-background-networking",
                "--disable-component-update",
            ])
            .args([
                "--disable-sync",
                "--hide-scrollbars",
                "--remote-debugging-pipe",
            ])
            // No name has an address, so that nothing can come from the network.
            .arg("--host-resolver-rules=MAP * ~NOTFOUND")
            .arg(format!("--user-data-dir={}", profile.path().display()))
            .env("TMPDIR", profile.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        // Chromium reads commands from descriptor 3, and writes messages to descriptor 4.
        let mapping = |parent_fd, child_fd| FdMapping {
            parent_fd,
            child_fd,
        };
        command
            .fd_mappings(vec![
                mapping(child_reads.into(), 3),
                mapping(child_writes.into(), 4),
            ])
            .unwrap();
        let process = command.spawn().unwrap();
        // Closes our ends of the child's pipes, so that we see when it exits.
        drop(command);
        let mut browser = Self {
            process,
            commands,
            messages: BufReader::new(messages),
            last_id: 0,
            session: None,
            events: Vec::new(),
            _profile: profile,
        };
        browser.attach();
        browser
    }

    fn attach(&mut self) {
        let target = self.call("Target.createTarget", &json!({"url": "about:blank"}));
        let target = json!({"targetId": target["targetId"], "flatten": true});
        let session = self.call("Target.attachToTarget", &target);
        self.session = Some(session["sessionId"].clone());
        for domain in ["Page", "Log", "Runtime", "Network"] {
            self.call(&format!("{domain}.enable"), &json!({}));
        }
    }

    /// Sends a command, and returns its result.
    fn call(&mut self, method: &str, parameters: &Value) -> Value {
        self.last_id += 1;
        let mut command = json!({"id": self.last_id, "method": method, "params": parameters});
        if let Some(session) = &self.session {
            command["sessionId"] = session.clone();
        }
        self.commands
            .write_all(format!("{command}\0").as_bytes())
            .unwrap();
        loop {
            let mut message = self.next_message();
            if message["id"] == self.last_id {
                assert!(message["error"].is_null(), "{method}: {message}");
                return message["result"].take();
            }
            self.events.push(message);
        }
    }

    fn next_message(&mut self) -> Value {
        let mut message = Vec::new();
        self.messages.read_until(0, &mut message).unwrap();
        assert_eq!(message.pop(), Some(0), "Chromium has exited");
        serde_json::from_slice(&message).unwrap()
    }

    /// Sets the width of the window in pixels, the colour scheme and the kind of medium, which is
    /// `screen` or `print`.
    pub(super) fn emulate(&mut self, width: u32, scheme: &str, medium: &str) {
        let screen = json!({
            "width": width, "height": 900, "deviceScaleFactor": 1, "mobile": false,
        });
        self.call("Emulation.setDeviceMetricsOverride", &screen);
        let features = json!([{"name": "prefers-color-scheme", "value": scheme}]);
        let media = json!({"media": medium, "features": features});
        self.call("Emulation.setEmulatedMedia", &media);
    }

    /// Opens a file, and waits until it is loaded.
    pub(super) fn open(&mut self, file: &Path) {
        let is_loaded = |event: &Value| event["method"] == "Page.loadEventFired";
        self.events.clear();
        let url = format!("file://{}", file.display());
        self.call("Page.navigate", &json!({"url": url}));
        while !self.events.iter().any(is_loaded) {
            let message = self.next_message();
            self.events.push(message);
        }
    }

    /// Evaluates an expression of JavaScript in the page.
    pub(super) fn evaluate(&mut self, expression: &str) -> Value {
        let parameters = json!({"expression": expression, "returnByValue": true});
        let mut outcome = self.call("Runtime.evaluate", &parameters);
        assert!(outcome["exceptionDetails"].is_null(), "{outcome}");
        outcome["result"]["value"].take()
    }

    /// Takes a picture of the upper left corner of the page, of 8 × 8 pixels.
    pub(super) fn picture_of_corner(&mut self) -> Value {
        let clip = json!({"x": 0, "y": 0, "width": 8, "height": 8, "scale": 1});
        self.call("Page.captureScreenshot", &json!({"clip": clip}))["data"].take()
    }

    /// What the console of the page shows: errors, warnings and messages.
    pub(super) fn console(&self) -> Vec<&Value> {
        let methods = [
            "Log.entryAdded",
            "Runtime.consoleAPICalled",
            "Runtime.exceptionThrown",
        ];
        let is_shown = |event: &&Value| methods.iter().any(|method| event["method"] == *method);
        self.events.iter().filter(is_shown).collect()
    }

    /// What the page has asked for, itself included.
    pub(super) fn requests(&self) -> Vec<&Value> {
        let is_request = |event: &&Value| event["method"] == "Network.requestWillBeSent";
        let events = self.events.iter().filter(is_request);
        events
            .map(|event| &event["params"]["request"]["url"])
            .collect()
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        // It removes its files and ends its other processes, or has exited already.
        let close = json!({"id": 0, "method": "Browser.close"});
        let _ = self.commands.write_all(format!("{close}\0").as_bytes());
        for _ in 0..EXIT_MAX_POLLS {
            if !matches!(self.process.try_wait(), Ok(None)) {
                return;
            }
            thread::sleep(EXIT_POLL_INTERVAL);
        }
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
