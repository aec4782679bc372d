//! `burrstone completions`

use clap::{Args, CommandFactory};
use clap_complete::Shell;

use super::output;

/// Print a script that completes burrstone's commands and options in a shell
#[derive(Args)]
#[command(after_help = "Examples:
  burrstone completions bash > ~/.local/share/bash-completion/completions/burrstone
  burrstone completions zsh > ~/.zfunc/_burrstone
  burrstone completions fish > ~/.config/fish/completions/burrstone.fish")]
pub struct Completions {
    shell: Shell,
}

impl Completions {
    pub fn run<C: CommandFactory>(self) -> anyhow::Result<()> {
        let mut script = Vec::new();
        clap_complete::generate(self.shell, &mut C::command(), "burrstone", &mut script);
        output::print(&script)
    }
}
