//! A real Chromium, driven over its pipe as a person drives it: looks, clicks and typed words.
//!
//! The protocol is Chrome's (<https://chromedevtools.github.io/devtools-protocol/>) by `--remote-debugging-pipe`: JSON
//! texts that end in NUL, orders to descriptor 3, answers and events from descriptor 4.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use crossbeam_channel::{Receiver, bounded};
use loupe::clock::Stopwatch;
use serde_json::{Value, json};

/// Longest wait for the page to load, connect and draw.
pub const PATIENCE: Duration = Duration::from_secs(40);
/// Answers that wait to be read; a full channel makes the browser wait.
const ANSWERS_AT_ONCE: usize = 64;
const PLACES: [&str; 2] = ["/usr/bin/chromium", "/usr/bin/chromium-browser"];

/// One page of a headless browser; closed with it.
pub struct Browser {
    child: Child,
    orders: ChildStdin,
    answers: Receiver<Value>,
    next_id: u64,
    session: Value,
}

impl Browser {
    /// Show `url`; the browser's own files go to `profile`. `None` where no Chromium is installed, said on stdout.
    pub fn open(url: &str, profile: &Path) -> Option<Self> {
        let Some(installed) = PLACES.into_iter().find(|path| Path::new(path).exists()) else {
            println!("skipped: Chromium is not installed");
            return None;
        };
        let mut child = Command::new("sh")
            .args(["-c", "exec \"$0\" \"$@\" 3<&0 4>&1 >/dev/null", installed])
            .args(["--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"])
            .args(["--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"])
            .args(["--remote-debugging-pipe", "--window-size=1600,1200"])
            .arg(format!("--user-data-dir={}", profile.display()))
            .arg("about:blank")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let orders = child.stdin.take().unwrap();
        let pipe = BufReader::new(child.stdout.take().unwrap());
        let (sender, answers) = bounded(ANSWERS_AT_ONCE);
        std::thread::spawn(move || {
            let texts = pipe.split(0).map_while(Result::ok);
            texts.map_while(|text| serde_json::from_slice(&text).ok()).all(|answer| sender.send(answer).is_ok())
        });
        let mut browser = Self { child, orders, answers, next_id: 0, session: Value::Null };
        let target = browser.order("Target.createTarget", json!({ "url": url }))["targetId"].clone();
        let attached = browser.order("Target.attachToTarget", json!({ "targetId": target, "flatten": true }));
        browser.session = attached["sessionId"].clone();
        Some(browser)
    }

    /// The value of an expression in the page; an exception there is `null`, as long as the page is loading.
    pub fn value(&mut self, expression: &str) -> Value {
        let order = json!({ "expression": expression, "returnByValue": true, "awaitPromise": true });
        self.order("Runtime.evaluate", order)["result"]["value"].clone()
    }

    /// Wait until an expression is true.
    pub fn until(&mut self, expression: &str) {
        let watch = Stopwatch::start();
        while self.value(expression) != Value::Bool(true) {
            let page = self.value("document.title + '\\n' + document.body.innerText");
            assert!(watch.elapsed() < PATIENCE, "not within {PATIENCE:?}: {expression}\n{page}");
            std::thread::yield_now();
        }
    }

    /// Click in the middle of the element that `selector` finds, having scrolled there.
    pub fn click(&mut self, selector: &str) {
        let middle = self.value(&format!(
            "(() => {{ const e = document.querySelector({selector:?}); e.scrollIntoView({{ block: 'center' }}); \
             const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; }})()"
        ));
        for kind in ["mousePressed", "mouseReleased"] {
            let at = json!({ "type": kind, "x": middle[0], "y": middle[1], "button": "left", "clickCount": 1 });
            self.order("Input.dispatchMouseEvent", at);
        }
    }

    /// Type into what has the focus.
    pub fn type_text(&mut self, text: &str) {
        self.order("Input.insertText", json!({ "text": text }));
    }

    fn order(&mut self, method: &str, params: Value) -> Value {
        self.next_id += 1;
        let mut order = json!({ "id": self.next_id, "method": method, "params": params });
        if !self.session.is_null() {
            order["sessionId"] = self.session.clone();
        }
        self.orders.write_all(format!("{order}\0").as_bytes()).unwrap();
        loop {
            let answer = self.answers.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("{method}: no answer"));
            if answer["id"] == self.next_id {
                assert!(answer["error"].is_null(), "{method}: {answer}");
                return answer["result"].clone();
            }
        }
    }
}

impl Drop for Browser {
    fn drop(&mut self) {
        let _gone = self.child.kill();
        let _reaped = self.child.wait();
    }
}
