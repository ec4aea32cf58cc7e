"""What every audit reads off a model: functions that `audits.AUDITS` names."""
