package ledger

import (
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/gonka-mesh/mesh/consensus/ledger/ledgerpb"
)

// bounds of parameters. Governance cannot leave them, so that no vote can stop the
// chain or break a sum.
var bounds = map[string]struct{ least, most uint64 }{
	"epoch_blocks":          {5, 1 << 20},
	"settle_blocks":         {2, 1 << 20}, // and below epoch_blocks
	"fee_per_byte":          {0, 1e9},
	"max_validators":        {1, 150},
	"collateral_per_weight": {0, 1e15},
	"cap_percent":           {1, 100},
	"unbonding_epochs":      {1, 1000},
	"vesting_epochs":        {1, 1000}, // as many entries may an owner have, each paid every epoch
	"emission_first":        {0, 1e15},
	"emission_decay":        {0, 1<<64 - 1},
	"slash_dispute_bp":      {0, 10000},
	"slash_equivocation_bp": {0, 10000},
	"slash_downtime_bp":     {0, 10000},
	"downtime_window":       {8, 100000},
	"downtime_max_missed":   {1, 100000}, // and below downtime_window
	"jail_epochs":           {1, 1000},
	"escrow_min":            {0, 1e18},
	"close_epochs":          {2, 100},
	"deposit_min":           {0, 1e14}, // these five: so that the next vote can still mend it
	"vote_blocks":           {2, 1 << 22},
	"quorum_bp":             {1, 6667},
	"threshold_bp":          {5000, 9000},
	"veto_bp":               {1000, 10000},
	"keep_epochs":           {2, 10000},
	"register_fee":          {0, 1e15},
	"host_collateral":       {0, 1e15},
}

// DefaultParams are those of the main network.
func DefaultParams() *ledgerpb.Params {
	return &ledgerpb.Params{
		EpochBlocks: 17280, SettleBlocks: 720, // a day and an hour, of blocks of 5 s
		FeePerByte: 100, RegisterFee: 10e9, HostCollateral: 10e9,
		MaxValidators: 100, CollateralPerWeight: 10e6, CapPercent: 10,
		UnbondingEpochs: 21, VestingEpochs: 180,
		EmissionFirst:  190_000e9,
		EmissionDecay:  18437983950968399159, // exp(-0.000475) 2^64
		SlashDisputeBp: 2000, SlashEquivocationBp: 2000, SlashDowntimeBp: 50,
		DowntimeWindow: 1000, DowntimeMaxMissed: 500, JailEpochs: 1,
		EscrowMin: 1e9, CloseEpochs: 2,
		DepositMin: 100e9, VoteBlocks: 34560, QuorumBp: 3334, ThresholdBp: 5000, VetoBp: 3334,
		KeepEpochs: 30,
	}
}

// setParam sets a parameter by its name in ledger.proto.
func setParam(p *ledgerpb.Params, name string, value uint64) error {
	bound, known := bounds[name]
	field := p.ProtoReflect().Descriptor().Fields().ByName(protoreflect.Name(name))
	switch {
	case !known || field == nil:
		return refuse("no parameter is named %.40q", name)
	case value < bound.least || value > bound.most:
		return refuse("parameter %s is %d, want %d to %d", name, value, bound.least, bound.most)
	}
	p.ProtoReflect().Set(field, protoreflect.ValueOfUint64(value))
	return nil
}

// checkParams checks what concerns more than one parameter.
func checkParams(p *ledgerpb.Params) error {
	switch {
	case p.GetSettleBlocks() >= p.GetEpochBlocks():
		return refuse("settle_blocks is %d, want less than epoch_blocks, %d", p.GetSettleBlocks(), p.GetEpochBlocks())
	case p.GetDowntimeMaxMissed() >= p.GetDowntimeWindow():
		return refuse("downtime_max_missed is %d, want less than downtime_window, %d", p.GetDowntimeMaxMissed(), p.GetDowntimeWindow())
	}
	return nil
}

// cloneParams returns a copy that may be changed.
func cloneParams(p *ledgerpb.Params) *ledgerpb.Params { return proto.Clone(p).(*ledgerpb.Params) }
