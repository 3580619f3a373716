//! One child process: started, heard, signalled by its own id, and never left behind.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Longer than anything takes that works, on a machine that does other things as well.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// Asks again and again until there is an answer.
///
/// # Panics
/// When there is none after `limit`.
pub fn eventually<T>(what: &str, limit: Duration, mut probe: impl FnMut() -> Option<T>) -> T {
    let until = Instant::now() + limit;
    loop {
        if let Some(answer) = probe() {
            return answer;
        }
        assert!(Instant::now() < until, "not within {limit:?}: {what}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Says something whether or not the test fails: what is written to the handle is not captured.
pub fn tell(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// `ringraft` with these arguments.
pub fn ringraft(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ringraft"));
    command.args(arguments).env_remove("RINGRAFT_LOG").env_remove("RINGRAFT_LOG_FORMAT");
    command
}

/// `ringraft serve` with this file.
pub fn serve(config: &Path) -> Command {
    let mut command = ringraft(&["serve", "--config"]);
    command.arg(config);
    command
}

/// A running or ended child. Dropping it kills it.
pub struct Process {
    child: Mutex<Child>,
    lines: Arc<Mutex<Vec<String>>>,
    listener: Option<JoinHandle<()>>,
}

impl Process {
    pub fn spawn(mut command: Command) -> Self {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the binary was built with this test");
        let stderr = BufReader::new(child.stderr.take().expect("it is piped"));
        let lines = Arc::new(Mutex::new(Vec::new()));
        let heard = lines.clone();
        let listener = std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                heard.lock().unwrap().push(line);
            }
        });
        Self { child: Mutex::new(child), lines, listener: Some(listener) }
    }

    /// What it has said on standard error so far.
    pub fn lines(&self) -> Vec<String> {
        self.lines.lock().unwrap().clone()
    }

    /// Whether a line has all of these words.
    pub fn said(&self, words: &[&str]) -> bool {
        self.lines().iter().any(|line| words.iter().all(|word| line.contains(word)))
    }

    pub fn signal(&self, signal: libc::c_int) {
        // SAFETY: no pointers. The id is that of our own child, which was not waited for yet and
        // therefore cannot belong to anybody else.
        let result = unsafe { libc::kill(self.child.lock().unwrap().id() as libc::pid_t, signal) };
        assert_eq!(result, 0, "signal {signal}: {}", std::io::Error::last_os_error());
    }

    /// SIGSTOP, until every thread stands still: before that one may go on taking work in.
    pub fn pause(&self) {
        self.signal(libc::SIGSTOP);
        let tasks = format!("/proc/{}/task", self.child.lock().unwrap().id());
        eventually("the process stands still", PATIENCE, || {
            let mut threads = std::fs::read_dir(&tasks).ok()?.flatten();
            threads.all(|thread| is_stopped(&thread.path())).then_some(())
        });
    }

    /// kill -9, and the end of it.
    pub fn kill(&mut self) {
        let child = self.child.get_mut().unwrap_or_else(|poisoned| poisoned.into_inner());
        let _ = child.kill();
        let _ = child.wait();
        self.hear_the_rest();
    }

    fn status(&self) -> Option<ExitStatus> {
        self.child.lock().unwrap().try_wait().expect("it is our child")
    }

    pub fn is_alive(&self) -> bool {
        self.status().is_none()
    }

    /// Its end, once it has come.
    pub fn ended(&mut self) -> Option<ExitStatus> {
        let status = self.status()?;
        self.hear_the_rest();
        Some(status)
    }

    /// Waits for its own end.
    pub fn wait(&mut self) -> ExitStatus {
        eventually("the process ends", PATIENCE, || self.ended())
    }

    fn hear_the_rest(&mut self) {
        if let Some(listener) = self.listener.take() {
            let _ = listener.join();
        }
    }
}

fn is_stopped(task: &Path) -> bool {
    let stat = std::fs::read_to_string(task.join("stat")).unwrap_or_default();
    // The state follows the name, which may hold anything, in parentheses.
    stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('T'))
}

impl Drop for Process {
    fn drop(&mut self) {
        self.kill();
    }
}
