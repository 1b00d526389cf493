//! What takes long shows how far it is: one bar a stage, one after the other.

use indicatif::ProgressBar;

use crate::cli::Output;

pub(super) struct Stages<'a> {
    output: &'a Output,
    shown: Option<(&'static str, ProgressBar)>,
}

impl<'a> Stages<'a> {
    pub(super) fn new(output: &'a Output) -> Self {
        Stages { output, shown: None }
    }

    /// How far a stage is; `total` is 0 where that is not known.
    pub(super) fn show(&mut self, stage: &'static str, done: u64, total: u64) {
        if self.shown.as_ref().is_none_or(|(shown, _)| *shown != stage) {
            self.clear();
        }
        let (_, bar) = self.shown.get_or_insert_with(|| (stage, self.output.bar(total, stage)));
        bar.set_length(total.max(done));
        bar.set_position(done);
    }

    pub(super) fn clear(&mut self) {
        if let Some((_, bar)) = self.shown.take() {
            bar.finish_and_clear();
        }
    }
}
