//! The progress bar of `bench`: on standard error, and only where that is a terminal.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

/// One bar for one run of one profile.
#[derive(Debug)]
pub struct Progress {
    bar: ProgressBar,
}

impl Progress {
    /// A run of `profile` that will take `total`.
    pub fn new(profile: &str, total: Duration) -> Self {
        let bar = ProgressBar::new(total.as_millis() as u64);
        let style = ProgressStyle::with_template("{prefix:<16} [{bar:40}] {percent:>3}%  {msg}")
            .expect("the template is a constant")
            .progress_chars("=> ");
        bar.set_style(style);
        bar.set_prefix(profile.to_owned());
        Self { bar }
    }

    /// How far the run is and how many commands a second it does. Call a few times a second.
    pub fn update(&self, elapsed: Duration, commands_per_s: f64) {
        self.bar.set_position(elapsed.as_millis() as u64);
        self.bar.set_message(format!("{commands_per_s:.0} commands/s"));
    }

    /// Takes the bar off the screen.
    pub fn finish(self) {
        self.bar.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bar_goes_its_way_without_a_terminal() {
        let progress = Progress::new("financial", Duration::from_secs(2));
        progress.update(Duration::from_millis(500), 1e6);
        assert_eq!(progress.bar.position(), 500);
        assert_eq!(progress.bar.message(), "1000000 commands/s");
        progress.finish();
    }
}
