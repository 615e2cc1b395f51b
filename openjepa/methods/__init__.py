"""One file, one paper, one contract (`Method`): the method of a recipe is in the file of its name."""

from openjepa.methods.contract import Method as Method
