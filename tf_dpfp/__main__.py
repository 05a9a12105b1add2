"""Commands of the package: `python -m tf_dpfp card FILE.keras`."""

from absl import app

from tf_dpfp.cards import command

if __name__ == "__main__":
    command.define_flags()
    app.run(command.run)
