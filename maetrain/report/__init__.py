"""From scores per case to one page that says, with statistics, what pretraining bought."""
